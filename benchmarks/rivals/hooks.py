"""What one writes by hand: hooks on peft's A and B, and a bmm for each matrix's gradients."""

from functools import partial

import torch
from workload import at_labels, losses


def scorer(work):
    """Products with vectors from each matrix's inputs and output gradients."""
    model, vectors = work.copied(), work.split(work.vectors)
    state = {}

    def ran(name, module, args, output):
        output.register_hook(partial(arrived, name, args[0].detach()))

    def arrived(name, x, delta):
        grads = torch.bmm(delta.transpose(1, 2), x).flatten(1)
        state["scores"] += grads @ vectors[name].flatten(1).t()

    for name, module in model.named_modules():
        if f"{name}.weight" in vectors:
            module.weight.requires_grad_(False)  # no batch-summed gradient of it
            module.register_forward_hook(partial(ran, f"{name}.weight"))
    model.enable_input_require_grads()

    def call():
        state["scores"] = torch.zeros(len(work.batch["labels"]), len(work.vectors))
        losses(at_labels(model, work.batch), work.batch).sum().backward()
        return state["scores"]

    return call, work.vectors
