"""torch.func: the gradient of one sample's loss, vectorised over samples."""

import torch
from torch.func import functional_call, grad, vmap
from workload import at_labels, losses


def scorer(work):
    """All per-sample gradients, then their products."""
    model, vectors = work.copied(), work.split(work.vectors)
    parameters = {n: p.detach() for n, p in model.named_parameters() if n in vectors}

    class AtLabels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return at_labels(self.model, batch)

    module = AtLabels()

    def loss(given, ids, labels):
        batch = {"input_ids": ids[None], "labels": labels[None]}
        named = {f"model.{name}": value for name, value in given.items()}
        return losses(functional_call(module, named, (batch,)), batch)[0]

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def call():
        found = each(parameters, work.batch["input_ids"], work.batch["labels"])
        return sum(found[n].flatten(1) @ v.flatten(1).t() for n, v in vectors.items())

    return call, work.vectors
