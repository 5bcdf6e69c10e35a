"""Every op against its float64 reference, over shapes, dtypes, layouts and instruction sets."""

import pytest
import torch

from fudlr_ext import _C, ops
from fudlr_ext.testing import DTYPES, OP_CASES, SHAPES, Shape, result_dtype

MIXED = Shape((3, 0, 1, 20, 7, 5, 9), 8, 50)


def check(got, case, arguments):
    """Hold an error to twice that of plain PyTorch in the accumulator's dtype, plus rounding.

    A rounding is eps times the sum of the terms' sizes. Measured over five seeds: at most 0.94
    beyond twice plain PyTorch's error in the narrower dtypes, and 2.0 in float64, where the
    reference rounds as much as the kernel does.
    """
    exact = case.reference(*(x.double() if x.is_floating_point() else x for x in arguments))
    dtype = result_dtype(arguments[0].dtype)
    plain = case.reference(*(x.to(dtype) if x.is_floating_point() else x for x in arguments))
    size = case.reference(*(x.double().abs() if x.is_floating_point() else x for x in arguments))
    assert got.dtype == dtype
    assert got.shape == exact.shape
    if not exact.numel():
        return
    error = (got.double() - exact).abs().max()
    rounding = torch.finfo(dtype).eps * size.max()
    allowed = 2 * (plain.double() - exact).abs().max() + rounding * (
        3 if dtype == torch.float64 else 1.5
    )
    assert error <= allowed


def isas():
    """Every instruction set that was built and that this CPU has."""
    before, usable = _C.isa(), []
    for name in _C.built_isas().split(","):
        try:
            _C.set_isa(name)
        except ValueError:
            continue
        usable.append(name)
    _C.set_isa(before)
    return usable


@pytest.fixture(params=isas())
def isa(request):
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_agrees_with_reference(case, shape, dtype, isa):
    arguments = case.make(shape, dtype)
    check(case.op(*arguments), case, arguments)


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_any_strides(case):
    for dtype in DTYPES:
        arguments = case.make(MIXED, dtype)
        expected = case.op(*arguments)
        spaced = [x.repeat_interleave(2, -1)[..., ::2] for x in arguments]
        turned = [x.t().contiguous().t() if x.dim() == 2 else x for x in arguments]
        wide = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in arguments]
        one_row = [
            x[:1].expand_as(x) if x.dim() == 2 and i == 0 else x for i, x in enumerate(arguments)
        ]
        for variant in (spaced, turned, wide):
            torch.testing.assert_close(case.op(*variant), expected, rtol=0, atol=0)
        check(case.op(*one_row), case, one_row)


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_vectors_in_any_layout(case):
    if len(case.differentiable) < 3:
        return
    *factors, last = case.make(MIXED, torch.float32)
    turned = last.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(case.op(*factors, turned), case.op(*factors, last), rtol=0, atol=0)


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_samples_may_start_late_and_end_early(case):
    left, right, offsets, *rest = case.make(MIXED, torch.float64)
    padding = torch.full((3, 1), torch.nan, dtype=torch.float64)
    left, right = (
        torch.cat([padding.expand(3, x.shape[1]), x, padding.expand(3, x.shape[1])])
        for x in (left, right)
    )
    expected = case.op(*case.make(MIXED, torch.float64))
    torch.testing.assert_close(case.op(left, right, offsets + 3, *rest), expected)


def padded(packed, offsets, t):
    n = len(offsets) - 1
    out = torch.full((n, t, packed.shape[1]), torch.nan, dtype=packed.dtype)
    for i in range(n):
        out[i, : offsets[i + 1] - offsets[i]] = packed[offsets[i] : offsets[i + 1]]
    return out


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_padded_samples(case):
    left, right, offsets, *rest = case.make(MIXED, torch.float32)
    function = ops.OPS[case.name]
    expected = function(left, right, *rest, offsets)
    got = function(padded(left, offsets, 22), padded(right, offsets, 22), *rest, offsets)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    even = Shape((6, 6, 6), 5, 9)
    left, right, offsets, *rest = case.make(even, torch.float32)
    whole = function(left.view(3, 6, 5), right.view(3, 6, 9), *rest)
    torch.testing.assert_close(whole, function(left, right, *rest, offsets), rtol=0, atol=0)


def test_nan_and_infinity_come_through():
    left, right, offsets = OP_CASES[0].make(Shape((2, 2), 3, 5), torch.float32)
    left[3, 1] = torch.nan
    right[0, 2] = torch.inf
    grads = ops.sample_grads(left, right, offsets)
    assert grads[0, :, 2].isinf().all()
    assert grads[1, 1].isnan().all()
    assert grads[1, [0, 2]].isfinite().all()
    assert grads[0, :, [0, 1, 3, 4]].isfinite().all()
