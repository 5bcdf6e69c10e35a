"""The ops of a recording against their reference: sketches in float64, codes bit by bit."""

import pytest
import torch

from fudlr_ext.ops.record import add_sketch, encode_rows
from fudlr_ext.reference import record as reference

LENGTHS = (5, 0, 1, 13, 9, 7, 11, 6)


pytestmark = pytest.mark.usefixtures("isa")


def arguments(dtype, a, b, q, *, of_left):
    generator = torch.Generator().manual_seed(a + b + q)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    left = normal(sum(LENGTHS), a + 3)[:, :a]  # with a gap between rows
    left[6:9], left[16:19] = 0, 0  # at a sample's start, and at its end
    left[22], left[:3] = 0, -0.0  # and between others; of either sign
    size = q * (b if of_left else a)
    rows = normal(len(LENGTHS), size + 7)
    given = (left, normal(sum(LENGTHS), b), offsets, normal(q, a if of_left else b), of_left, 4)
    return rows, given


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("of_left", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(8, 64, 9), (64, 8, 16), (5, 3, 2), (1, 33, 1), (48, 4, 17), (403, 3, 20), (3, 403, 20)],
)
def test_a_sketch_is_its_reference(shape, of_left, dtype):
    rows, given = arguments(dtype, *shape, of_left=of_left)
    left, right, offsets, directions, *rest = given
    exact, found = rows.double(), rows.clone()
    reference.add_sketch(exact, left.double(), right.double(), offsets, directions.double(), *rest)
    add_sketch(found, *given)
    bound = 64 * torch.finfo(dtype).eps
    assert float((found.double() - exact).norm() / exact.norm()) <= bound
    assert torch.equal(found[:, :4], rows[:, :4])
    assert torch.equal(found[:, -3:], rows[:, -3:])


def test_codes_are_the_references():
    rows = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    rows[1, :128], rows[2] = 0, rows[2] * 1e-30
    rows[3, :130] = torch.arange(130) / 2  # halves round to even codes
    rows[5, 3], rows[5, 200], rows[6, 0] = torch.nan, torch.inf, -torch.inf
    for part in (rows, rows[:, :128], rows[:, :1], rows[::2, ::3]):
        for one, other in zip(encode_rows(part), reference.encode_rows(part), strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_what_does_not_fit_is_refused():
    rows, given = arguments(torch.float64, 8, 12, 3, of_left=True)
    with pytest.raises(ValueError, match="does not fit behind column 8"):
        add_sketch(rows, *given[:-1], 8)
    with pytest.raises(ValueError, match="directions must have the shape"):
        add_sketch(rows, *given[:3], given[3][:, :-1], *given[4:])
    with pytest.raises(ValueError, match="rows must be"):
        encode_rows(rows)
