"""On a real GPU, the ops without a row in OP_CASES: real sizes, bits, streams, graphs.

Their small sizes, with all others: test_gpu_ops.py.
"""

import pytest
import test_gpu_ops
import torch
from kin import KIN
from launches import after_late_inputs, replayed
from test_gpu_ops import moved

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
    given = moved(call.arguments())
    assert all(map(torch.equal, after_late_inputs(call.run, given), call.run(given)))


@calls
def test_is_captured_by_a_graph_and_never_waits(call):
    given = moved(call.arguments())
    assert all(map(torch.equal, replayed(call.run, given), call.run(given)))


@calls
def test_autocast_changes_nothing(call):
    given = moved(call.arguments())
    plain = call.run(given)
    with torch.autocast("cuda", torch.bfloat16):
        assert all(map(torch.equal, call.run(given), plain))
