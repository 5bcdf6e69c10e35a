"""What no op may do: die on an odd size, drop a derivative, grow with the square of a length."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))
import attention_cases
import decoder_cases
from attention_cases import AttentionSize

from fudlr_ext import EngineError
from fudlr_ext.testing import OP_CASES, as_tuple, is_float

DECODER = torch.ops.fudlr_decoder
CALLS = [(op, way) for op, (_, *ways) in decoder_cases.DECODER_WAYS.items() for way in ways]
HEADS = [(op, way) for op, ways in attention_cases.WAYS.items() for way in ways]


def double(*size):
    return torch.randn(*size, dtype=torch.float64)


def given(op, way, size):
    if op in attention_cases.WAYS:
        return attention_cases.make(op, double, size, way)
    return decoder_cases.DECODER_WAYS[op][0](op, double, size, way)


@pytest.mark.parametrize(("rows", "width", "k"), [(0, 2, 1), (3, 0, 1), (3, 2, 0), (1, 1, 1)])
@pytest.mark.parametrize(("op", "way"), CALLS)
def test_empty_rows_are_empty_or_refused(op, way, rows, width, k):
    arguments = given(op, way, (rows, width, k))
    if width == 0 and not op.startswith("swiglu"):
        with pytest.raises(ValueError, match=r"at least one number|even width above 0"):
            getattr(DECODER, op)(*arguments)
        return
    results = getattr(DECODER, op)(*arguments)
    for result in () if results is None else as_tuple(results):
        assert result.isfinite().all()
        assert result.shape[0] in {rows, rows * k}


@pytest.mark.parametrize(
    "size",
    [AttentionSize((), 4, 1), AttentionSize((0,), 4, 2), AttentionSize((3,), 0, 1),
     AttentionSize((1, 0), 1, 1), AttentionSize((3, 0), 5, 0)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("op", "way"), HEADS)
def test_empty_heads_and_samples(op, way, size):
    for result in as_tuple(getattr(DECODER, op)(*given(op, way, size))):
        assert result.isfinite().all()


def test_odd_sizes_that_cannot_be_meant_are_refused():
    x = torch.randn(4, 6)
    for width in (0, 1, 3):
        with pytest.raises(ValueError, match="rotate_heads: heads of an even width above 0"):
            DECODER.rotate_heads(x, x[:, :width], x[:, :width], False)
    odd = torch.randn(4, 5)
    calls = (
        lambda: DECODER.swiglu(odd),
        lambda: DECODER.swiglu_tangent(odd, odd),
        lambda: DECODER.swiglu_backward(odd, odd[:, :2]),
    )
    for call in calls:
        with pytest.raises(ValueError, match="two equal halves"):
            call()


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_a_forward_mode_derivative_is_refused(case):
    arguments = list(case.make(case.small[0], torch.float64))
    i = next(i for i, x in enumerate(arguments) if is_float(x))
    where = "forward-mode derivative|forward AD"

    def of(x):
        return case.op(*arguments[:i], x, *arguments[i + 1 :])

    ones = torch.ones_like(arguments[i])
    with pytest.raises((EngineError, NotImplementedError), match=where):
        torch.func.jvp(of, (arguments[i],), (ones,))
    with forward_ad.dual_level(), pytest.raises((EngineError, NotImplementedError), match=where):
        of(forward_ad.make_dual(arguments[i], ones))


@pytest.mark.parametrize(("op", "way"), CALLS + HEADS)
def test_the_decoder_forgets_no_derivative(op, way):
    size = (3, 2, 1) if op not in attention_cases.WAYS else attention_cases.SIZES[0]
    x, *rest = given(op, way, size)
    with forward_ad.dual_level(), pytest.raises(EngineError, match="forward-mode derivative"):
        getattr(DECODER, op)(forward_ad.make_dual(x, torch.ones_like(x)), *rest)
    with pytest.raises(EngineError, match="derivative for fudlr_decoder"):
        getattr(DECODER, op)(x.requires_grad_().clone(), *rest)


def test_what_changes_in_place_says_so():
    x, cos = torch.randn(3, 4), torch.randn(3, 2)
    DECODER.rotate_heads(x, cos, cos, False)
    assert x._version == 1
    with torch.inference_mode():
        DECODER.rotate_heads(torch.randn(3, 4), cos, cos, False)


LIMITED = """
import resource, torch, fudlr_ext
attention = torch.ops.fudlr_decoder.attention

def call(length):
    x, offsets = torch.ones(length, 8), torch.tensor([0, length])
    return attention(x, x, x, offsets, offsets, torch.arange(1, length + 1), 1, 1, 1.0)

def limit(more):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))

call(10)
limit(48 << 20)
assert torch.allclose(call(6000), torch.ones(6000, 8), atol=1e-3)  # its square has 144 MB
x = torch.ones(9000, 8)
limit(1 << 20)
try:
    call(9000)
except MemoryError as error:
    print(type(error).__name__, error)
"""


def test_memory_is_linear_in_a_sample_and_its_want_an_error():
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bytes of workspace were asked for" in done.stdout


CROWDED = """
import os, resource, torch, fudlr_ext
torch.set_num_threads(64)
call = torch.ops.fudlr_grad.catalogue_mean_backward
n, w = 2048, 4096
users, items, values = torch.randn(n, w) / 64, torch.randn(3, w), torch.ones(3, 1)
mean, lse = torch.ops.fudlr.catalogue_mean(users, items, values)

def gradients(a, b):
    weights = torch.ones(b - a, 1)
    shift = mean[a:b, 0] - lse[a:b]
    given = users[a:b], items, values, 1.0, None, None, lse[a:b], weights, shift
    return call(*given, True, True, True)

gradients(0, 8)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
whole = gradients(0, n)
parts = gradients(0, 100), gradients(100, n)
assert torch.equal(whole[0], torch.cat([part[0] for part in parts]))
for i in (1, 2):
    torch.testing.assert_close(whole[i], parts[0][i] + parts[1][i])
"""


def test_workspace_does_not_grow_with_threads_times_users():
    """64 threads × 2 chunks × 2,048 users × 4,096 numbers would be 4.3 GB."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", CROWDED], capture_output=True, text=True, check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_STACKSIZE": "1M"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
