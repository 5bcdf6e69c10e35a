"""Refreshing and merging keep rows bit by bit, and the figures of stale rows."""

from __future__ import annotations

import pytest
import torch
from fudlr.gradients.store import Binding, Stale, StoreError, merge, refresh
from fudlr.gradients.store.audit import stale_influences
from store_cases import BINDING, DTYPES, OTHER, random_rows, write_store

UPDATED = Binding(**{**BINDING.__dict__, "adapter": OTHER})


@pytest.mark.parametrize("dtype", DTYPES)
def test_fresh_rows_replace_and_the_others_stay_as_stored(tmp_path, dtype):
    rows, moved = random_rows(30, 9), random_rows(30, 9, seed=1)
    again = torch.tensor([3, 4, 17, 29])
    old = write_store(tmp_path / "old", rows, dtype)
    fresh = write_store(tmp_path / "fresh", moved[again], dtype, ids=again, binding=UPDATED)
    found, stale = refresh(old, fresh, tmp_path / "out", UPDATED)
    mixed = rows.clone()
    mixed[again] = moved[again]
    alone = write_store(tmp_path / "alone", mixed, dtype, binding=UPDATED)
    assert found.content_sha256() == alone.content_sha256()
    before, after = old.read(again), fresh.read(again)
    assert (stale.rows, stale.measured) == (26, 4)
    assert stale.error == pytest.approx(float((before - after).norm() / after.norm()), rel=1e-5)
    assert found.spec.stale == stale


def test_figures_are_merged_by_rows(tmp_path):
    stores = []
    for k, (rows, count) in enumerate(((20, 2), (12, 6))):
        ids, again = torch.arange(rows) + 100 * k, torch.arange(count) + 100 * k
        old = write_store(tmp_path / f"old{k}", random_rows(rows, 9, seed=k), ids=ids)
        moved = random_rows(count, 9, seed=8 + k)
        fresh = write_store(tmp_path / f"fresh{k}", moved, ids=again, binding=UPDATED)
        stores.append(refresh(old, fresh, tmp_path / f"out{k}", UPDATED)[0])
    one, two = (store.spec.stale for store in stores)
    joint = merge([store.folder for store in stores], tmp_path / "joint").spec.stale
    assert (joint.rows, joint.measured) == (24, 8)
    assert joint.cosine == pytest.approx((18 * one.cosine + 6 * two.cosine) / 24)
    assert joint.error == pytest.approx(((18 * one.error**2 + 6 * two.error**2) / 24) ** 0.5)
    clean = write_store(tmp_path / "c", random_rows(5, 9), ids=torch.arange(5) + 500,
                        binding=UPDATED)  # fmt: skip
    half = merge([stores[0].folder, clean.folder], tmp_path / "half").spec.stale
    assert half == Stale(18, 2, pytest.approx(one.cosine), pytest.approx(one.error), None)
    assert one.influences is None  # of two samples
    assert joint.influences is None
    alone = merge([stores[1].folder], tmp_path / "alone").spec.stale
    assert alone == two
    assert two.influences is not None


def test_the_share_of_influences_that_stale_rows_keep():
    rows = random_rows(40, 9)
    # s = (G₁G₁ᵀ/m₁ + damping)⁻¹ G₁ w: with a large damping twice the rows are twice the influences.
    assert stale_influences(rows, rows, 0.1) == 1
    assert stale_influences(2 * rows, rows, 1e6) == pytest.approx(0, abs=1e-4)
    assert stale_influences(1.1 * rows, rows, 1e6) == pytest.approx(1 - 0.1**2, abs=1e-4)
    assert stale_influences(-rows, rows, 0.1) == pytest.approx(-3, abs=1e-4)
    assert stale_influences(rows[:3], rows[:3], 0.1) is None


def test_what_does_not_belong_to_the_old_store_is_refused(tmp_path):
    old = write_store(tmp_path / "old", random_rows(10, 9))
    wrong = write_store(tmp_path / "wide", random_rows(3, 8), binding=UPDATED)
    with pytest.raises(StoreError, match="dim 8 instead of 9"):
        refresh(old, wrong, tmp_path / "out", UPDATED)
    more = write_store(tmp_path / "more", random_rows(3, 9), ids=torch.arange(3) + 9,
                       binding=UPDATED)  # fmt: skip
    with pytest.raises(StoreError, match="2 are not in it"):
        refresh(old, more, tmp_path / "out", UPDATED)
    assert not (tmp_path / "out").exists()
