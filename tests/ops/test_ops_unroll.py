"""The ops of an unrolled training against their reference in float64; refusals; fake kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fudlr_ext.ops import unroll
from fudlr_ext.reference import unroll as reference

K = 3
SHAPES = ((1, 3, 2), (2, 6, 5), (8, 64, 48), (5, 33, 17), (8, 24, 64))  # rank, in, out
OPTIONS = {  # rate, betas, eps, corrections, l2, clip, coupled, kept
    "adam": (0.01, 0.9, 0.999, 1e-8, 0.271, 0.003, 0.02, 0.0, 0.05, 1.0),
    "adamw": (0.01, 0.8, 0.99, 1e-6, 0.488, 0.03, 0.0, 0.0, 0.0, 0.98),
    "clipped": (0.01, 0.8, 0.99, 1e-6, 0.488, 0.03, 0.02, 4.0, 0.03, 0.98),
    "not clipped": (0.01, 0.8, 0.99, 1e-6, 0.488, 0.03, 0.02, 1e4, 0.0, 1.0),
}


pytestmark = pytest.mark.usefixtures("isa")


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adam_arguments(options, d=1100):
    """A step's place [d], the last number without any gradient, and lines [k, d]."""
    theta, gradient, start = (normal(seed, d) for seed in range(3))
    mean, square = normal(3, d), normal(4, d).square()
    for tensor in (mean, square, theta, gradient, start):
        tensor[-1] = 0
    place = (theta, mean, square, gradient, start, torch.tensor(options).double())
    return place, [normal(10 + seed, K, d) for seed in range(4)]


def layer_arguments():
    rows, at, squares = [], 2, 0
    for rank, wide, out in SHAPES:
        rows.append((at + rank * out, at, rank, wide, out))  # B first, and a gap behind
        at += rank * (wide + out) + 1
        squares += rank * rank
    inverses = normal(1, squares), normal(2, squares)
    return torch.tensor(rows), (normal(0, at), *inverses), normal(3, at), normal(4, K, at)


def sketch_arguments():
    rows, at, factor, sketch = [], 1, 0, 0
    for number, (rank, wide, out) in enumerate(SHAPES):
        is_b, count = number % 2, min(3 + 4 * number, wide, out)
        shape = (out, rank) if is_b else (rank, wide)
        rows.append((at, *shape, factor, count, sketch, is_b))
        at += rank * max(wide, out) + 1
        factor += count * (out if is_b else wide)
        sketch += count * rank
    return torch.tensor(rows), normal(0, factor), normal(1, K, at), normal(2, K, sketch)


def cases():
    for name, options in OPTIONS.items():
        place, lines = adam_arguments(options)
        yield f"adam_move {name}", "adam_move", place
        several = (lines[0], lines[1], lines[2].square(), lines[3], *place[4:])
        yield f"adam_move of several {name}", "adam_move", several
        yield f"adam_tangent {name}", "adam_tangent", (*lines, *place)
        yield f"adam_transposed {name}", "adam_transposed", (*lines[:3], *place)
    layers, point, total, shifts = layer_arguments()
    yield "lora_seen", "lora_seen", (shifts, *point, layers)
    yield "lora_views", "lora_views", (total, shifts, *point, layers)
    yield "lora_views of several", "lora_views", (shifts.flip(0), shifts, *point, layers)
    table, factors, vectors, sketches = sketch_arguments()
    yield "lora_project", "lora_project", (vectors, factors, table, sketches.shape[1])
    yield "lora_lift", "lora_lift", (sketches, factors, table, vectors.shape[1])


CASES = {name: (op, given) for name, op, given in cases()}


def as_dtype(given, dtype):
    """Numbers as `dtype`; the last tensor of Adam's ops are options, always float64."""
    real = [isinstance(x, torch.Tensor) and x.is_floating_point() and len(x) > 10 for x in given]
    lines = [isinstance(x, torch.Tensor) and x.dim() == 2 and x.is_floating_point() for x in given]
    return [x.to(dtype) if a or b else x for x, a, b in zip(given, real, lines, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_an_op_is_its_reference(name, dtype):
    op, given = CASES[name]
    given = as_dtype(given, dtype)
    exact = as_dtype(given, torch.float64)
    found, expected = getattr(unroll, op)(*given), getattr(reference, op)(*exact)
    if isinstance(found, torch.Tensor):
        found, expected = (found,), (expected,)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert bool(one.isfinite().all())
        error = (one.double() - other).norm() / other.norm()
        # Sums of up to 64 products of three factors; Adam's of a few.
        assert float(error) <= 16 * torch.finfo(dtype).eps


def test_strides_and_threads_change_nothing():
    for op, given in CASES.values():
        apart = [
            x.repeat_interleave(2, -1)[..., ::2] if isinstance(x, torch.Tensor) else x
            for x in given
        ]
        expected = getattr(unroll, op)(*given)
        torch.set_num_threads(3)
        found = getattr(unroll, op)(*apart)
        torch.set_num_threads(1)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_a_fake_has_the_shapes(name):
    op, given = CASES[name]
    expected = getattr(unroll, op)(*given)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in given]
        found = getattr(unroll, op)(*fakes)
    single = isinstance(expected, torch.Tensor)
    pairs = zip(*(([found], [expected]) if single else (found, expected)), strict=True)
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("name", ["lora_seen", "lora_views", "lora_project", "lora_lift"])
def test_tables_of_numbers_that_cannot_be_are_refused(name):
    """Negative sizes whose product is positive, and sizes whose product overflows."""
    op, given = CASES[name]
    place = next(i for i, x in enumerate(given) if getattr(x, "dtype", None) == torch.int64)
    columns = (2, 3, 4) if "lora_s" in name or "lora_v" in name else (1, 2, 4)
    for wrong in (-1, -5, 2**40, 2**62):
        for chosen in (columns, columns[:2], columns[:1]):
            table = given[place].clone()
            table[-1, list(chosen)] = wrong
            with pytest.raises(ValueError, match=r"does not lie within|more directions"):
                getattr(unroll, op)(*given[:place], table, *given[place + 1 :])


@pytest.mark.parametrize("name", ["lora_project", "lora_lift"])
def test_lines_are_two_dimensional(name):
    op, (lines, factors, table, size) = CASES[name]
    for wrong in (lines[0], lines[0, 0], lines[None]):
        with pytest.raises(ValueError, match="must have the shape"):
            getattr(unroll, op)(wrong, factors, table, size)
    with pytest.raises(ValueError, match="were asked for"):
        getattr(unroll, op)(lines, factors, table, -1)
    empty = getattr(unroll, op)(lines[:0], factors, table, size)
    assert empty.shape == (0, size)


def test_what_does_not_fit_is_refused():
    for name in ("lora_views", "lora_project", "lora_lift"):
        op, given = CASES[name]
        place = next(i for i, x in enumerate(given) if getattr(x, "dtype", None) == torch.int64)
        table = given[place].clone()
        table[-1, 0] += 10**6
        with pytest.raises(ValueError, match="does not lie within"):
            getattr(unroll, op)(*given[:place], table, *given[place + 1 :])
    op, given = CASES["adam_move adam"]
    with pytest.raises(ValueError, match="gradient must have the shape"):
        unroll.adam_move(*given[:3], given[3][:-1], *given[4:])
    with pytest.raises(ValueError, match="square must be"):
        unroll.adam_move(*given[:2], given[2].float(), *given[3:])
    theta = given[0].clone().requires_grad_()
    with pytest.raises(ValueError, match="derivative for fudlr_unroll"):
        unroll.adam_move(theta, *given[1:])
