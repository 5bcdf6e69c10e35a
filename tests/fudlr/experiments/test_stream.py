"""The stream of interactions: the same however it is read, and skewed as it claims."""

import os

import numpy as np
import pytest
from fudlr.common.errors import UsageError
from fudlr.common.processes import in_own_process, peak_bytes
from fudlr.experiments.stream import LENGTH, Stream

STREAM = Stream(seed=3, n_items=200, block_users=30)


def test_a_shorter_stream_is_the_beginning_of_a_longer():
    size = STREAM.block_size
    short, long = list(STREAM.blocks(2 * size)), list(STREAM.blocks(4 * size))
    assert (len(short), len(long)) == (2, 4)
    for a, b in zip(short, long, strict=False):
        np.testing.assert_array_equal(a.item, b.item)
    joined = STREAM.first(2)
    np.testing.assert_array_equal(joined.item, np.concatenate([b.item for b in short]))
    assert joined.users["user_id"].n_unique() == 60
    other = next(Stream(seed=4, n_items=200, block_users=30).blocks(size))
    assert (other.item != short[0].item).any()
    assert (short[0].item != short[1].item).any()


def test_no_user_has_an_item_twice_and_the_first_items_are_popular():
    data = STREAM.first(4)
    rows = data.item.reshape(-1, LENGTH)
    assert all(len(set(row)) == LENGTH for row in rows.tolist())
    counts = np.bincount(data.item, minlength=200)
    assert counts[:20].mean() > 2 * counts[100:].mean()


def test_spread_takes_users_from_all_of_it():
    size = 5 * STREAM.block_size
    found = STREAM.spread(size, 31)
    whole = STREAM.first(5)
    names = found.users["user_id"].to_list()
    assert names[0] == "u0"
    assert names[-1] == "u149"
    for place, name in enumerate(names):
        u = int(name[1:])
        np.testing.assert_array_equal(
            found.item[place * LENGTH : (place + 1) * LENGTH],
            whole.item[u * LENGTH : (u + 1) * LENGTH],
        )


def test_a_process_of_its_own_has_its_own_memory_and_its_end_is_told():
    before = dict(os.environ)
    held = np.ones(40_000_000)  # 320 MB here, and none there
    assert peak_bytes() > held.nbytes
    assert 5e6 < in_own_process(peak_bytes) < held.nbytes
    with pytest.raises(UsageError, match="killed"):
        in_own_process(os._exit, 1)
    assert in_own_process(os.getenv, "MALLOC_MMAP_THRESHOLD_") == str(2**20)
    assert dict(os.environ) == before
