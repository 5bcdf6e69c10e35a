"""A sample's numbers depend on that sample alone: not on threads, batch or neighbours."""

import pytest
import torch

from fudlr_ext.testing import OP_CASES, as_tuple

EVERY = [(case, dtype) for case in OP_CASES for dtype in case.dtypes]
PER_SAMPLE = [(case, dtype) for case, dtype in EVERY if case.part is not None]


def equal(got, expected):
    return all(map(torch.equal, as_tuple(got), as_tuple(expected)))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("case", "dtype"), EVERY, ids=str)
def test_threads_change_nothing(case, dtype, threads):
    arguments = case.make(case.large, dtype)
    threads(1)
    alone = case.op(*arguments)
    threads(3)
    assert equal(case.op(*arguments), alone)


@pytest.mark.parametrize(("case", "dtype"), PER_SAMPLE, ids=str)
def test_the_batch_changes_nothing(case, dtype):
    arguments = case.make(case.large, dtype)
    together = as_tuple(case.op(*arguments))
    n = len(together[0])
    for size in (1, 5):  # samples are taken in fours
        for start in (0, 1, 4, n - 6, n - 1):
            stop = min(start + size, n)
            part = case.op(*case.part(arguments, start, stop))
            assert equal(part, [result[start:stop] for result in together])


def test_other_vectors_change_nothing():
    case = next(case for case in OP_CASES if case.name == "sample_dots")
    left, right, vectors, offsets = case.make(case.large, torch.float32)
    together = case.op(left, right, vectors, offsets)
    for j in range(vectors.shape[0]):
        one = case.op(left, right, vectors[j : j + 1], offsets)
        assert torch.equal(one[:, 0], together[:, j])
