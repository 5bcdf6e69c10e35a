"""On a real GPU, the ops without a row in OP_CASES: real sizes, bits, streams, graphs.

Their small sizes, with all others: test_gpu_ops.py.
"""

import pytest
import test_gpu_ops
import torch
from kin import KIN
from test_gpu_ops import moved

from fudlr_ext.testing import is_float

pytestmark = test_gpu_ops.pytestmark
calls = pytest.mark.parametrize("call", KIN, ids=str)


@pytest.mark.parametrize(
    ("call", "dtype"), [(call, dtype) for call in KIN for dtype in call.dtypes], ids=str
)
def test_agrees_at_real_sizes(call, dtype):
    job = call.large_job(dtype, "cuda")
    job.check(job.run())


@calls
def test_the_same_call_gives_the_same_bits(call):
    given = moved(call.make(call.large, torch.float32))
    assert all(map(torch.equal, call.run(given), call.run(given)))


@calls
def test_runs_on_the_current_stream(call):
    """The numbers are made on a side stream, late: a kernel on another one would read too soon."""
    given = moved(call.arguments())
    expected = call.run(given)
    late = [torch.zeros_like(x) if is_float(x) else x for x in given]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for to, source in zip(late, given, strict=True):
            if is_float(to):
                to.copy_(source)
        got = call.run(late)
    stream.synchronize()
    assert all(map(torch.equal, got, expected))


@calls
def test_is_captured_by_a_graph_and_never_waits(call):
    given = moved(call.arguments())
    call.run(given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = call.run(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for x in given:
        if is_float(x):
            x.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, got, call.run(given)))


@calls
def test_autocast_changes_nothing(call):
    given = moved(call.arguments())
    plain = call.run(given)
    with torch.autocast("cuda", torch.bfloat16):
        assert all(map(torch.equal, call.run(given), plain))
