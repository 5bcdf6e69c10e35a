"""Batches of like length: every sample once, within the budget, and back in order."""

from itertools import pairwise

import pytest
import torch
from fudlr.common.batches import token_batches
from fudlr.common.errors import UsageError


def lengths(n=200):
    return torch.randint(1, 60, (n,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("most", [None, 7])
@pytest.mark.parametrize("budget", [59, 60, 500, 10**6])
def test_every_sample_is_in_one_batch_within_the_budget(budget, most):
    sizes = lengths()
    batches = token_batches(sizes, budget, most)
    assert torch.cat(batches).sort().values.tolist() == list(range(len(sizes)))
    padded = [len(batch) * int(sizes[batch].max()) for batch in batches]
    assert max(padded) <= budget
    assert most is None or max(map(len, batches)) <= most
    # No batch but the last has room for another sample.
    for batch, after in pairwise(batches):
        full = (len(batch) + 1) * int(sizes[batch].max()) > budget
        assert full or len(batch) == most
        assert int(sizes[batch].min()) >= int(sizes[after].max())
    if budget == 500 and most is None:  # padding in the samples' order is nearly half
        assert sum(padded) < 1.1 * int(sizes.sum())


def test_no_samples_and_samples_without_tokens():
    assert token_batches([], 10) == []
    assert [len(batch) for batch in token_batches([0, 0, 0], 2)] == [2, 1]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (([3, 8, 2], 7), "sample 1 alone has 8"),
        (([3, 8, 2], 0), "into 0 tokens"),
        (([3, 8, 2], -5), "into -5 tokens"),
        (([3, 8, 2], 9, 0), "into 0 samples"),
        (([3, -1], 9), "no list of numbers"),
        (([[3]], 9), "no list of numbers"),
    ],
)
def test_nonsense_is_refused(given, found):
    with pytest.raises(UsageError, match=found):
        token_batches(*given)
