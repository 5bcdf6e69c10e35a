"""Samples that came after a store was recorded: appended to it, and debiased without the old."""

from __future__ import annotations

import fudlr
import pytest
import torch
from fudlr import load_run
from fudlr.common.errors import UsageError
from fudlr.data import Samples
from fudlr.gradients.store import Store, StoreError
from fudlr.record import append_run, later_run, record_run

SHORT = {"curve": (), "heldout": False, "objective": "arp"}


@pytest.fixture(scope="module")
def parts(run_folder, tmp_path_factory):
    """An older run, a later one, both with stores, their union, and all recorded at once."""
    folder = tmp_path_factory.mktemp("later")
    run = load_run(run_folder)
    projection = run.store().projection()
    cut = sorted(run.split.train.time)[len(run.split.train) * 3 // 4]
    older = later_run(run, run.split.train.between(0, cut))
    new = later_run(run, run.split.train.between(cut, float("inf")))
    assert older.split.train.time.max() < new.split.train.time.min()
    assert len(older.split.train) + len(new.split.train) == len(run.split.train)
    for name, part in (("older", older), ("new", new)):
        record_run(part, folder / name, projection=projection)
    both = append_run(older, new, (folder / "older", folder / "new"), folder / "both")
    once = later_run(run, both.split.train)
    record_run(once, folder / "once", projection=projection)
    return folder, run, older, new, both, once


def test_all_is_answered_as_if_recorded_at_once(parts):
    folder, *_, both, once = parts
    found = fudlr.debias(both, store=str(folder / "both"), **SHORT)
    other = fudlr.debias(once, store=str(folder / "once"), **SHORT)
    mine, true = (each.answer.scored.influence.values for each in (found, other))
    # Other batches: float32 sums, and what bfloat16 makes of their last digit.
    assert (mine - true).norm() < 2e-3 * true.norm()
    assert (found.mask != other.mask).sum() <= 2
    assert any("never in" in text for text in found.summary["warnings"])
    old, new, all_ = (Store.open(folder / name) for name in ("older", "new", "both"))
    for get in (
        lambda store: store.mean_gradient(),
        lambda store: torch.tensor(store.audit["energy"]),
    ):
        mean = (old.n * get(old) + new.n * get(new)) / all_.n
        torch.testing.assert_close(get(all_), mean, rtol=1e-4, atol=1e-8)


def test_the_new_are_answered_without_the_old(parts):
    folder, *_, new, _, once = parts
    found = fudlr.debias(new, store=str(folder / "new"), **SHORT)
    assert len(found.mask) == len(new.split.train)
    rows = later_run(once, new.split.train)
    # The same samples out of the store of all: what is not in the order takes no part.
    rows.bound = once.binding
    other = fudlr.debias(rows, store=str(folder / "once"), damping=0.03, **SHORT)
    mine, true = (each.answer.scored.influence.values for each in (found, other))
    assert (mine - true).norm() < 2e-3 * true.norm()


def test_what_does_not_belong_together(parts, tmp_path):
    folder, run, older, new, both, _ = parts
    swapped = (folder / "new", folder / "older")
    with pytest.raises(StoreError, match="another order"):
        append_run(older, new, swapped, tmp_path / "out")
    with pytest.raises(StoreError, match="are in two of them"):
        append_run(both, new, (folder / "both", folder / "new"), tmp_path / "out")
    with pytest.raises(StoreError, match="another order"):
        Store.open(folder / "both", run.binding)
    with pytest.raises(UsageError, match="there are none"):
        later_run(run, run.split.train.between(0, 0))
    with pytest.raises(UsageError, match="other interactions"):
        later_run(run, Samples(load_run(run.folder).interactions, run.split.train.position))
