"""A sample's numbers depend on that sample alone: not on threads, batch or neighbours."""

import pytest
import torch

from fudlr_ext import _C
from fudlr_ext.testing import DTYPES, OP_CASES, Shape

# Large enough to be shared between threads (see kThreadWork).
LARGE = Shape(tuple(range(13, 60)), 8, 200, 5)
PER_SAMPLE = [case for case in OP_CASES if case.per_sample]


@pytest.fixture
def threads():
    before = _C.get_num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_threads_change_nothing(case, dtype, threads):
    arguments = case.make(LARGE, dtype)
    threads(1)
    alone = case.op(*arguments)
    for count in (2, 3, 5):
        threads(count)
        assert torch.equal(case.op(*arguments), alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PER_SAMPLE, ids=str)
def test_the_batch_changes_nothing(case, dtype):
    left, right, offsets, *rest = case.make(LARGE, dtype)
    together = case.op(left, right, offsets, *rest)
    n = len(offsets) - 1
    for size in (1, 3, 4, 6):
        parts = [
            case.op(left, right, offsets[start : min(start + size, n) + 1], *rest)
            for start in range(0, n, size)
        ]
        assert torch.equal(torch.cat(parts), together)


@pytest.mark.parametrize("case", PER_SAMPLE[1:], ids=str)
def test_other_vectors_change_nothing(case):
    left, right, offsets, vectors = case.make(LARGE, torch.float32)
    together = case.op(left, right, offsets, vectors)
    for j in range(vectors.shape[0]):
        one = case.op(left, right, offsets, vectors[j : j + 1])
        assert torch.equal(one[:, 0], together[:, j])


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_the_same_call_gives_the_same_bits(case):
    arguments = case.make(LARGE, torch.float32)
    assert torch.equal(case.op(*arguments), case.op(*arguments))
