"""Dispatcher behaviour: schemas, fake tensors, autograd and torch.compile."""

import pytest
import torch
from torch.library import opcheck

from fudlr_ext import EngineError, ops, reference
from fudlr_ext.testing import OP_CASES, Shape, as_tuple, is_float, on_floats

TYPES = (torch.float32, torch.int8)
EVERY = [(case, dtype) for case in OP_CASES for dtype in TYPES if dtype in case.dtypes]
SMALLEST = [(case, shape) for case in OP_CASES for shape in case.small]
PACKED = [case for case in OP_CASES if case.packed]


def weighed(result):
    """Return one number that depends on all floating-point results, each in its own way."""
    parts = [x for x in as_tuple(result) if x.is_floating_point()]
    return sum((i + 1) * x.square().sum() for i, x in enumerate(parts))


def test_every_schema_has_a_case_and_a_function():
    names = {
        schema.name.removeprefix("fudlr::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fudlr::")
    }
    assert names == {case.name for case in OP_CASES} == set(ops.OPS)
    assert all(callable(getattr(reference, name)) for name in names)


@pytest.mark.parametrize(("case", "dtype"), EVERY, ids=str)
def test_opcheck(case, dtype):
    arguments = list(case.make(case.small[0], dtype))
    for i in case.differentiable:
        arguments[i].requires_grad_()
    opcheck(case.op, tuple(arguments))


@pytest.mark.parametrize(("case", "shape"), SMALLEST, ids=str)
def test_gradcheck(case, shape):
    arguments = list(case.make(shape, torch.float64))
    for i in case.differentiable:
        arguments[i].requires_grad_()
    if case.differentiable:
        assert torch.autograd.gradcheck(case.op, arguments)
        if case.twice:
            assert torch.autograd.gradgradcheck(case.op, arguments)
        else:
            with pytest.raises(EngineError, match="first derivatives only"):
                torch.autograd.gradgradcheck(case.op, arguments)


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_gradient_without_samples_is_zero(case):
    arguments = list(case.make(Shape((), 2, 3), torch.float64))
    arguments[0] = torch.randn(4, 2, dtype=torch.float64)
    arguments[1] = torch.randn(4, 3, dtype=torch.float64)
    inputs = [arguments[i].requires_grad_() for i in case.differentiable]
    for gradient in torch.autograd.grad(case.op(*arguments).sum(), inputs):
        assert not gradient.any()


@pytest.mark.parametrize("case", [x for x in OP_CASES if x.differentiable], ids=str)
def test_gradient_of_bfloat16_has_its_dtype(case):
    arguments = list(case.make(case.small[0], torch.bfloat16))
    inputs = [arguments[i].requires_grad_() for i in case.differentiable]
    gradients = torch.autograd.grad(weighed(case.op(*arguments)), inputs)
    exact = list(on_floats(tuple(arguments), lambda x: x.detach().double()))
    wanted = [exact[i].requires_grad_() for i in case.differentiable]
    truth = torch.autograd.grad(weighed(case.reference(*exact)), wanted)
    for got, expected, argument in zip(gradients, truth, inputs, strict=True):
        assert got.dtype == argument.dtype
        worst = torch.finfo(got.dtype).eps * expected.abs().max()
        assert (got.double() - expected).abs().max() <= max(worst, 1e-5 * expected.abs().max())


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_compiles_in_one_graph(case):
    given = case.make(case.small[0], torch.float32)
    function = ops.OPS[case.name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    inputs, plain = (on_floats(given, lambda x: x.clone().requires_grad_()) for _ in range(2))
    got, expected = compiled(*inputs), function(*plain)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    got.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(inputs, plain, strict=True):
        if is_float(ours):
            torch.testing.assert_close(ours.grad, theirs.grad)
