"""Every op against its float64 reference, over shapes, dtypes, layouts and instruction sets."""

import pytest
import torch

from fudlr_ext import _C, ops
from fudlr_ext.testing import OP_CASES, Shape, as_tuple, check_agreement, is_float

MIXED = Shape((3, 0, 1, 20, 7, 5, 9), 8, 50)
PACKED = [case for case in OP_CASES if case.packed]
EVERY = [(case, dtype) for case in OP_CASES for dtype in case.dtypes]


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


ISAS = isas()


@pytest.mark.parametrize(("case", "dtype"), EVERY, ids=str)
def test_agrees_with_reference(case, dtype):
    """At every size where something changes, zero and odd ones among them, on every kernel."""
    before = _C.isa()
    try:
        for shape in case.shapes:
            arguments = case.make(shape, dtype)
            for isa in ISAS:
                _C.set_isa(isa)
                try:
                    check_agreement(case.op(*arguments), case, arguments)
                except AssertionError as error:
                    raise AssertionError(f"{shape} with {isa}") from error
    finally:
        _C.set_isa(before)


@pytest.mark.numerics
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_any_strides(case):
    for dtype in case.dtypes:
        arguments = case.make(MIXED if case.packed else case.large, dtype)
        expected = as_tuple(case.op(*arguments))

        def on_tensors(change, arguments=arguments):
            return [change(x) if isinstance(x, torch.Tensor) else x for x in arguments]

        for variant in (
            on_tensors(lambda x: x.repeat_interleave(2, -1)[..., ::2]),
            on_tensors(lambda x: x.t().contiguous().t() if x.dim() == 2 else x),
            on_tensors(lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]]),
        ):
            for got, wanted in zip(as_tuple(case.op(*variant)), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        first, *rest = arguments
        one_row = [first[:1].expand_as(first), *rest]
        check_agreement(case.op(*one_row), case, one_row)


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_vectors_in_any_layout(case):
    left, right, *rest, offsets = case.make(MIXED, torch.float32)

    def turn(x):
        return x.transpose(-1, -2).contiguous().transpose(-1, -2) if is_float(x) else x

    got = case.op(left, right, *map(turn, rest), offsets)
    torch.testing.assert_close(got, case.op(left, right, *rest, offsets), rtol=0, atol=0)


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_samples_may_start_late_and_end_early(case):
    left, right, *rest, offsets = case.make(MIXED, torch.float64)
    padding = torch.full((3, 1), torch.nan, dtype=torch.float64)
    left, right = (
        torch.cat([padding.expand(3, x.shape[1]), x, padding.expand(3, x.shape[1])])
        for x in (left, right)
    )
    expected = case.op(*case.make(MIXED, torch.float64))
    torch.testing.assert_close(case.op(left, right, *rest, offsets + 3), expected)


def padded(packed, offsets, t):
    n = len(offsets) - 1
    out = torch.full((n, t, packed.shape[1]), torch.nan, dtype=packed.dtype)
    for i in range(n):
        out[i, : offsets[i + 1] - offsets[i]] = packed[offsets[i] : offsets[i + 1]]
    return out


@pytest.mark.numerics
@pytest.mark.parametrize("case", PACKED, ids=str)
def test_padded_samples(case):
    left, right, *rest, offsets = case.make(MIXED, torch.float32)
    function = ops.OPS[case.name]
    expected = function(left, right, *rest, offsets)
    got = function(padded(left, offsets, 22), padded(right, offsets, 22), *rest, offsets)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    even = Shape((6, 6, 6), 5, 9)
    left, right, *rest, offsets = case.make(even, torch.float32)
    whole = function(left.view(3, 6, 5), right.view(3, 6, 9), *rest)
    torch.testing.assert_close(whole, function(left, right, *rest, offsets), rtol=0, atol=0)


@pytest.mark.parametrize("sides", [(3, 2), (3, None), (None, 2), (None, None)], ids=str)
def test_a_sketch_is_the_projected_gradient(sides):
    left, right, offsets = OP_CASES[0].make(MIXED, torch.float64)
    given = [
        None if q is None else torch.randn(q, x.shape[1], dtype=torch.float64, requires_grad=True)
        for q, x in zip(sides, (left, right), strict=True)
    ]
    got = ops.sample_sketch(left, right, *given, offsets)
    expected = ops.sample_grads(left, right, offsets)
    expected = expected if given[0] is None else given[0] @ expected
    expected = expected if given[1] is None else expected @ given[1].t()
    torch.testing.assert_close(got, expected)
    for side in (x for x in given if x is not None):
        ours, theirs = (
            torch.autograd.grad(x.square().sum(), side, retain_graph=True)[0]
            for x in (got, expected)
        )
        torch.testing.assert_close(ours, theirs)
    narrow = ops.sample_sketch(left.bfloat16(), right.bfloat16(), None, None, offsets)
    assert narrow.dtype == torch.float32


def test_projections_that_do_not_fit_are_refused():
    left, right, offsets = OP_CASES[0].make(MIXED, torch.bfloat16)
    for wrong in (torch.ones(3, 7), torch.ones(8), torch.ones(3, 8).bfloat16()):
        with pytest.raises(ValueError, match=r"sample_sketch: a projection of shape \[q, 8\]"):
            ops.sample_sketch(left, right, wrong, None, offsets)
    got = ops.sample_sketch(left, right, torch.ones(3, 8), None, offsets)
    assert got.dtype == torch.float32
    with pytest.raises(ValueError, match="on one device"):
        ops.sample_sketch(left, right, torch.ones(3, 8, device="meta"), None, offsets)


def test_nan_and_infinity_come_through():
    left, right, offsets = OP_CASES[0].make(Shape((2, 2), 3, 5), torch.float32)
    left[3, 1] = torch.nan
    right[0, 2] = torch.inf
    grads = ops.sample_grads(left, right, offsets)
    assert grads[0, :, 2].isinf().all()
    assert grads[1, 1].isnan().all()
    assert grads[1, [0, 2]].isfinite().all()
    assert grads[0, :, [0, 1, 3, 4]].isfinite().all()
