"""Stored rows give the products of the same rows in memory."""

from __future__ import annotations

import pytest
import torch
from fudlr.common.errors import DataError, UsageError
from fudlr.gradients import MemoryRows
from fudlr.gradients.store import StoredRows, StoreError
from store_cases import DTYPES, random_rows, write_store


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def close(found, exact):
    assert found.shape == exact.shape
    assert torch.linalg.norm(found - exact) <= 1e-6 * torch.linalg.norm(exact)


@pytest.mark.parametrize("window_bytes", [1, 1000, 2**26])
def test_products_in_the_stated_order(tmp_path, dtype, window_bytes):
    ids = torch.randperm(50)
    store = write_store(tmp_path, random_rows(50, 130), dtype, ids=ids, shard_rows=8)
    order = torch.randperm(50)[:31]
    rows = StoredRows(store, order, window_bytes=window_bytes)
    exact = MemoryRows(store.read(order).double())
    assert (rows.n, rows.d) == (31, 130)
    v = torch.randn(3, 130, dtype=torch.float64)
    w = torch.randn(2, 31, dtype=torch.float64)
    close(rows.dots(v), exact.dots(v))
    close(rows.sum(w), exact.sum(w))
    close(rows.gram_product(v), exact.gram_product(v))
    close(rows.gram_product(v, w[0]), exact.gram_product(v, w[0]))
    assert torch.equal(rows.load().matrix, store.read(order))
    assert rows.dots(v.float()).dtype == torch.float32


def test_default_order_is_by_id(tmp_path):
    source = random_rows(20, 5)
    ids = torch.randperm(20) * 3
    rows = StoredRows(write_store(tmp_path, source, ids=ids))
    v = torch.randn(1, 5)
    close(rows.dots(v), source[ids.argsort()] @ v.T)
    assert rows.order.tolist() == list(range(0, 60, 3))


def test_a_window_without_weight_is_not_read(tmp_path):
    store = write_store(tmp_path, random_rows(20, 4), shard_rows=10)
    rows = StoredRows(store)
    rows.store.shards[1].path.write_bytes(b"")  # reading it would raise
    weights = torch.zeros(1, 20)
    weights[0, :10] = 1
    close(rows.sum(weights), random_rows(20, 4)[:10].sum(0, keepdim=True))
    with pytest.raises(StoreError):
        rows.sum(weights + 1)


def test_bad_requests(tmp_path):
    store = write_store(tmp_path / "a", random_rows(4, 3))
    with pytest.raises(StoreError, match="2 are not in its last epoch, sample 7 the first"):
        StoredRows(store, torch.tensor([1, 7, 9]))
    with pytest.raises(UsageError, match="1 of 3 ids are repeated"):
        StoredRows(store, torch.tensor([1, 1, 2]))
    with pytest.raises(DataError):
        StoredRows(store).dots(torch.ones(3))
    with pytest.raises(DataError):
        StoredRows(store).sum(torch.ones(1, 3))
