"""opacus 1.6.0's GradSampleModule."""

import warnings

from opacus.grad_sample import GradSampleModule
from workload import at_labels, losses


def scorer(work):
    """All per-sample gradients in `grad_sample`, then their products."""
    model, vectors = work.copied(), work.split(work.vectors)
    model.train()  # its hooks rest in evaluation mode; there is no dropout
    warnings.filterwarnings("ignore", module="torch")
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=False)

    def call():
        for parameter in model.parameters():
            parameter.grad = parameter.grad_sample = None
        losses(at_labels(wrapped, work.batch), work.batch).sum().backward()
        scores = 0
        for name, parameter in model.named_parameters():
            if name in vectors:
                scores = scores + parameter.grad_sample.flatten(1) @ vectors[name].flatten(1).t()
        return scores

    return call, work.vectors
