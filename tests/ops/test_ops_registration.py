"""Dispatcher behaviour: schemas, fake tensors, autograd and torch.compile."""

import pytest
import torch
from torch.library import opcheck

from fudlr_ext import ops, reference
from fudlr_ext.testing import DTYPES, OP_CASES, Shape

SMALL = Shape((2, 0, 1, 3), 3, 5, 2)


def test_every_schema_has_a_case_and_a_function():
    names = {
        schema.name.removeprefix("fudlr::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fudlr::")
    }
    assert names == {case.name for case in OP_CASES} == set(ops.OPS)
    assert all(callable(getattr(reference, name)) for name in names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_opcheck(case, dtype):
    arguments = list(case.make(SMALL, dtype))
    for i in case.differentiable:
        arguments[i].requires_grad_()
    opcheck(case.op, tuple(arguments))


@pytest.mark.parametrize("shape", [SMALL, Shape((2,), 1, 3), Shape((1, 2), 4, 2, 1)], ids=str)
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_gradcheck(case, shape):
    arguments = list(case.make(shape, torch.float64))
    for i in case.differentiable:
        arguments[i].requires_grad_()
    assert torch.autograd.gradcheck(case.op, arguments)
    assert torch.autograd.gradgradcheck(case.op, arguments)


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_gradient_without_samples_is_zero(case):
    arguments = list(case.make(Shape((), 2, 3), torch.float64))
    arguments[0] = torch.randn(4, 2, dtype=torch.float64)
    arguments[1] = torch.randn(4, 3, dtype=torch.float64)
    inputs = [arguments[i].requires_grad_() for i in case.differentiable]
    for gradient in torch.autograd.grad(case.op(*arguments).sum(), inputs):
        assert not gradient.any()


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_gradient_of_bfloat16_has_its_dtype(case):
    arguments = list(case.make(SMALL, torch.bfloat16))
    inputs = [arguments[i].requires_grad_() for i in case.differentiable]
    gradients = torch.autograd.grad(case.op(*arguments).square().sum(), inputs)
    exact = [x.detach().double() if x.is_floating_point() else x for x in arguments]
    wanted = [exact[i].requires_grad_() for i in case.differentiable]
    truth = torch.autograd.grad(case.reference(*exact).square().sum(), wanted)
    for got, expected, argument in zip(gradients, truth, inputs, strict=True):
        assert got.dtype == argument.dtype
        worst = torch.finfo(got.dtype).eps * expected.abs().max()
        assert (got.double() - expected).abs().max() <= max(worst, 1e-5 * expected.abs().max())


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_compiles_in_one_graph(case):
    left, right, offsets, *rest = case.make(SMALL, torch.float32)
    function = ops.OPS[case.name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    inputs = [x.clone().requires_grad_() for x in (left, right, *rest)]
    plain = [x.clone().requires_grad_() for x in (left, right, *rest)]
    got, expected = compiled(*inputs, offsets), function(*plain, offsets)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    got.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(inputs, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
