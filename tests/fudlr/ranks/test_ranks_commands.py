"""Commands in several processes: what one process makes, and nothing that hangs."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from fudlr import load_run
from fudlr.cli import OVER_RANKS, app
from fudlr.common import parallel
from fudlr.gradients.store import Store, StoreError, StoreWriter
from fudlr.gradients.store.shards import decode
from fudlr.record import scoring
from rank_cases import command, said, start, together, wait


def assert_same_rows(first: Store, other: Store) -> None:
    """The samples are the same, in the same order; gradients within int8's rounding."""
    assert torch.equal(first.counts, other.counts)
    assert torch.equal(first.first_ids(), other.first_ids())
    for number in range(first.steps):
        here, there = first.step(number), other.step(number)
        assert torch.equal(here.ids, there.ids)
        assert torch.equal(here.shares, there.shares)
        assert torch.allclose(here.mean, there.mean, rtol=1e-4, atol=1e-5 * here.mean.norm())
        rows = []
        for store, step in ((first, here), (other, there)):
            lifted = store.projection(step.segment).lift(decode(step.rows, step.scales))
            rows.append(lifted)
        assert (rows[0] - rows[1]).norm() < 5e-3 * rows[0].norm()


@pytest.mark.parametrize(("size", "through"), [(2, "peft"), (3, "engine")])
def test_training(tmp_path, run_folder, config_file, size, through):
    out = tmp_path / "run"
    words = ["train", "--config", config_file, "--out", out, "--record"]
    together(size, command, *words, "--set", f"train.through={through}", folder=tmp_path)
    one, several = load_run(run_folder), load_run(out)
    way = (one.theta - one.start).norm()
    assert torch.equal(one.start, several.start)
    assert (one.theta - several.theta).norm() < 1e-5 * way
    assert one.losses == pytest.approx(several.losses, rel=1e-5)
    assert_same_rows(one.store(), several.store())
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"run"}
    # Rank 0 alone speaks.
    assert "The run is in" in (tmp_path / f"said-{size}-0").read_text()
    assert not (tmp_path / f"said-{size}-1").read_text()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_recording(tmp_path, run_folder, size):
    words = ["record", run_folder, "--out"]
    scoring.record_run(load_run(run_folder), tmp_path / "one")
    together(size, command, *words, tmp_path / "several", folder=tmp_path)
    binding = load_run(run_folder).binding
    stores = [Store.open(tmp_path / name, binding, check="full") for name in ("one", "several")]
    assert_same_rows(*stores)
    assert stores[0].audit.keys() == stores[1].audit.keys()
    assert not list(tmp_path.glob("*.rank-*"))


def dying(how: str, *words: object) -> None:
    """`fudlr`, whose second process ends before its first batch is stored."""
    append = StoreWriter.append

    def appended(*args, **options):
        append(*args, **options)
        if os.environ["RANK"] != "1":
            args[0].flush()  # a shard of one batch
        else:
            time.sleep(2)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(28, "No space left on device")

    StoreWriter.append = appended
    command(*words)


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_process_that_ends_ends_all_and_a_restart_goes_on(tmp_path, run_folder, how):
    out = tmp_path / "store"
    words = ("record", run_folder, "--out", out)
    codes = wait(start(3, dying, how, *words, folder=tmp_path), 30)
    assert codes == ([1, -signal.SIGKILL, 1] if how == "killed" else [1, 1, 1])
    expected = "rank 1 no longer answers" if how == "killed" else "the disk is full"
    for rank in (0, 2):
        assert expected in (tmp_path / f"said-3-{rank}").read_text(), said(tmp_path)
    with pytest.raises(StoreError, match="not finished"):
        Store.open(out)
    # Whole shards are taken in up to the first that is missing, by any number of processes.
    recorded = []
    append = StoreWriter.append
    StoreWriter.append = lambda *a, **o: (recorded.append(1), append(*a, **o))[1]
    try:
        scoring.record_run(load_run(run_folder), out)
    finally:
        StoreWriter.append = append
    assert len(recorded) == 3
    whole = scoring.record_run(load_run(run_folder), tmp_path / "whole")
    assert_same_rows(whole, Store.open(out, check="full"))
    assert not list(tmp_path.glob("*.rank-*"))


def early(*words: object) -> None:
    """`fudlr`, whose second process ends before the two have met."""
    if os.environ["RANK"] == "1":
        os._exit(1)
    command(*words)


def test_a_process_that_waits_for_another_can_be_ended(tmp_path, run_folder):
    """By torchrun, which saw the other end."""
    words = ("record", run_folder, "--out", tmp_path / "store")
    first, other = start(2, early, *words, folder=tmp_path)
    other.join(30)
    time.sleep(2)
    first.terminate()
    # On a busy machine it is not waiting yet.
    assert wait([first], 10)[0] in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_other_commands_are_refused_by_name(tmp_path, run_folder):
    words = ("export", run_folder, "--out", tmp_path / "weights.jsonl")
    codes = wait(start(2, command, *words, folder=tmp_path))
    assert codes == [2, 2]
    assert "`fudlr export` was to run in 2 processes: it works in one" in said(tmp_path)
    known = {info.callback.__name__ for info in app.registered_commands}
    assert set(OVER_RANKS) <= known


def test_one_process_has_nothing_to_do_with_others(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parallel.start()
    assert parallel.ranks() is parallel.ALONE
    assert not parallel.many()
    assert parallel.ALONE.part(7) == slice(0, 7)
    assert parallel.ALONE.gather({"a": 1}) == [{"a": 1}]
