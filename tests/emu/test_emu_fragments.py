"""The warp's matrix operations against the PTX manual's formulas.

PTX ISA 9.2, "Matrix Fragments for mma.m16n8k16 with floating point type" (9.7.14.5.8) and
"ldmatrix": groupID = lane >> 2, threadID_in_group = lane % 4.
"""

import ctypes

import emulation
import pytest
import torch

LANES = range(32)


@pytest.fixture(scope="module")
def library():
    return emulation.load("seeded_plain")


def a_place(lane, i):
    """Row and column of a lane's element i of A [16, 16]."""
    row = lane >> 2 if i < 2 or 4 <= i < 6 else (lane >> 2) + 8
    column = lane % 4 * 2 + (i & 1) + (0 if i < 4 else 8)
    return row, column


def b_place(lane, i):
    """Row and column of a lane's element i of B [16, 8]."""
    row = lane % 4 * 2 + (i & 1) + (0 if i < 2 else 8)
    return row, lane >> 2


def d_place(lane, i):
    """Row and column of a lane's element i of C and D [16, 8]."""
    return (lane >> 2 if i < 2 else (lane >> 2) + 8), lane % 4 * 2 + (i & 1)


PLACES = {"a": (a_place, 8, (16, 16)), "b": (b_place, 4, (16, 8)), "d": (d_place, 4, (16, 8))}


def registers(operand, matrix):
    """A matrix's elements as the lanes hold them, [32, elements]."""
    place, elements, _ = PLACES[operand]
    rows = [[matrix[place(lane, i)] for i in range(elements)] for lane in LANES]
    return torch.stack([torch.stack(row) for row in rows]).contiguous()


def matrix_of(operand, held):
    place, elements, size = PLACES[operand]
    matrix = torch.full(size, torch.nan)
    for lane in LANES:
        for i in range(elements):
            matrix[place(lane, i)] = held[lane, i]
    return matrix


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def multiply(library, a, b, c):
    d = torch.full((32, 4), torch.nan)
    half = int(a.dtype == torch.float16)
    library.fragments_mma(half, pointer(a), pointer(b), pointer(c), pointer(d))
    return d


@pytest.mark.parametrize("operand", PLACES)
def test_the_formulas_name_every_element_once(operand):
    place, elements, size = PLACES[operand]
    named = sorted(place(lane, i) for lane in LANES for i in range(elements))
    assert named == [(i, j) for i in range(size[0]) for j in range(size[1])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_product(library, dtype):
    """All numbers differ: one that is held in another place is seen."""
    torch.manual_seed(0)
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    c = torch.randn(16, 8)
    held = multiply(library, registers("a", a), registers("b", b), registers("d", c))
    torch.testing.assert_close(matrix_of("d", held), a.float() @ b.float() + c)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(library, transposed):
    """Lane 8m + r names row r of matrix m; a lane's pair is its row's, or column's."""
    matrices = torch.arange(256, dtype=torch.int16).reshape(4, 8, 8)
    to = torch.full((32, 8), -1, dtype=torch.int16)
    library.fragments_load(int(transposed), pointer(matrices), pointer(to))
    for lane in LANES:
        for m in range(4):
            row, column = lane >> 2, lane % 4 * 2
            pair = to[lane, 2 * m : 2 * m + 2]
            if transposed:
                assert torch.equal(pair, matrices[m, column : column + 2, row]), (lane, m)
            else:
                assert torch.equal(pair, matrices[m, row, column : column + 2]), (lane, m)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_to_16_bits(library, dtype):
    torch.manual_seed(0)
    special = [0.0, -0.0, 1e-8, 6e-5, 65504.0, 65520.0, 3e38, torch.inf, -torch.inf, torch.nan]
    tied = torch.tensor([0x3F808000, 0x3F818000, 0x3F802000, 0x3F801000], dtype=torch.int32)
    numbers = torch.cat([torch.tensor(special), tied.view(torch.float32), torch.randn(500)])
    out = torch.empty_like(numbers)
    library.fragments_round(
        int(dtype == torch.float16), pointer(numbers), len(numbers), pointer(out)
    )
    torch.testing.assert_close(out, numbers.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
