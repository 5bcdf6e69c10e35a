"""The ops of a recording against their reference: sketches in float64, codes bit by bit."""

import pytest
import torch

from fudlr_ext.errors import EngineError
from fudlr_ext.ops.record import add_sketches, encode_rows
from fudlr_ext.reference import record as reference

LENGTHS = (5, 0, 1, 13, 9, 7, 11, 6)


pytestmark = pytest.mark.usefixtures("isa")


SHAPES = [(8, 64, 9), (64, 8, 16), (5, 3, 2), (1, 33, 1), (48, 4, 17), (403, 3, 20), (3, 403, 20)]


def arguments(dtype, *shapes, lengths=LENGTHS):
    """Of matrices (a, b, q, of_left) one after the other, with 4 columns before and 3 behind."""
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    left, right, directions, table, start, column = [], [], [], [], 0, 4
    for a, b, q, of_left in shapes:
        left.append(normal(sum(lengths), a + 3)[:, :a])  # with a gap between rows
        left[-1][6:9], left[-1][16:19] = 0, 0  # at a sample's start, and at its end
        left[-1][22], left[-1][:3] = 0, -0.0  # and between others; of either sign
        right.append(normal(sum(lengths), b))
        directions.append(normal(q * (a if of_left else b)))
        table.append([start, q, of_left, column])
        start, column = start + len(directions[-1]), column + q * (b if of_left else a)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows = normal(len(lengths), column + 3)
    return rows, [left, right, offsets, torch.cat(directions), torch.tensor(table)]


def double(given):
    left, right, offsets, directions, table = given
    return (
        [x.double() for x in left],
        [x.double() for x in right],
        offsets,
        directions.double(),
        table,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("of_left", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, None], ids=str)
def test_sketches_are_their_reference(shape, of_left, dtype):
    shapes = [(*one, of_left != (i % 2 == 1)) for i, one in enumerate([shape] if shape else SHAPES)]
    rows, given = arguments(dtype, *shapes)
    exact, found = rows.double(), rows.clone()
    reference.add_sketches(exact, *double(given))
    add_sketches(found, *given)
    bound = 64 * torch.finfo(dtype).eps
    assert float((found.double() - exact).norm() / exact.norm()) <= bound
    assert torch.equal(found[:, :4], rows[:, :4])
    assert torch.equal(found[:, -3:], rows[:, -3:])


def test_samples_of_one_length_need_no_offsets_and_factors_may_have_more_dimensions():
    rows, given = arguments(torch.float32, (8, 64, 9, False), (16, 4, 3, True), lengths=[6] * 8)
    left, right, _, *rest = given
    expected = rows.clone()
    add_sketches(expected, *given)
    found, cubes = rows.clone(), [[x.unflatten(0, (8, 6)) for x in part] for part in (left, right)]
    assert not cubes[0][0].is_contiguous()
    add_sketches(found, *cubes, None, *rest)
    assert torch.equal(found, expected)
    other = rows.clone()
    reference.add_sketches(other, *cubes, None, *rest)
    assert torch.allclose(other, expected, atol=1e-4)


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
    rows, (left, right, offsets, directions, table) = arguments(torch.float64, (8, 12, 3, True))
    beyond, unknown = table.clone(), table.clone()
    beyond[0, 3], unknown[0, 0] = 8, 1
    with pytest.raises(ValueError, match="does not fit behind column 8"):
        add_sketches(rows, left, right, offsets, directions, beyond)
    with pytest.raises(ValueError, match="no 3 directions behind number 1"):
        add_sketches(rows, left, right, offsets, directions, unknown)
    with pytest.raises(ValueError, match="there are 1 left and 2 right"):
        add_sketches(rows, left, right * 2, offsets, directions, table)
    with pytest.raises(ValueError, match="table must have the shape"):
        add_sketches(rows, left * 2, right * 2, offsets, directions, table)
    with pytest.raises(ValueError, match="rows must be"):
        add_sketches(rows, [x.float() for x in left], [x.float() for x in right], offsets,
                     directions, table)  # fmt: skip
    with pytest.raises(ValueError, match="rows must be"):
        encode_rows(rows)
    left[0].requires_grad_()
    with pytest.raises(EngineError, match="the op has none"):
        add_sketches(rows, left, right, offsets, directions, table)
