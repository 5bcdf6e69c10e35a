"""How a call on a GPU is shown to keep to its stream, and to be captured without waiting."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fudlr_ext.testing import is_float

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def after_late_inputs(run: Run, given: Sequence[Tensor]) -> Sequence[Tensor]:
    """Results on a side stream where the inputs come late: another stream would read too soon."""
    late = [torch.zeros_like(x) if is_float(x) else x for x in given]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for to, source in zip(late, given, strict=True):
            if is_float(to):
                to.copy_(source)
        got = run(late)
    stream.synchronize()
    return got


def replayed(run: Run, given: Sequence[Tensor]) -> Sequence[Tensor]:
    """Results of a captured graph's replay after the inputs were halved; waiting is an error."""
    run(given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = run(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for x in given:
        if is_float(x):
            x.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    return got
