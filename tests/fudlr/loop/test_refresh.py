"""A store after its adapter was updated: said to be stale, and refreshed in part or whole."""

from __future__ import annotations

import json
import shutil

import fudlr
import pytest
import torch
from fudlr import load_run, lora
from fudlr.cli import app
from fudlr.common.errors import UsageError
from fudlr.gradients.store import Store, StoreError, merge
from fudlr.gradients.store.audit import stale_influences
from fudlr.record import record_run, refresh_run, scoring
from typer.testing import CliRunner

SHORT = {"curve": (), "heldout": False}


@pytest.fixture(scope="module")
def updated(run_folder, tmp_path_factory):
    """The folder of an adapter that a request updated."""
    run = load_run(run_folder)
    found = fudlr.debias(run, objective="arp", **SHORT)
    folder = tmp_path_factory.mktemp("updated") / "adapter"
    run.engine.load(found.theta)
    lora.save(run.recommender.model, folder)
    return folder


@pytest.fixture(scope="module")
def run(run_folder, updated):
    return load_run(run_folder, updated)


@pytest.fixture(scope="module")
def anew(run, tmp_path_factory):
    """All samples recorded at the updated adapter, in the old store's projection."""
    projection = Store.open(run.folder / "store").projection()
    folder = tmp_path_factory.mktemp("anew") / "store"
    return record_run(run, folder, projection=projection)


def test_a_share_is_fresh_the_rest_is_old_and_the_store_says_so(run, anew, tmp_path):
    old = Store.open(run.folder / "store")
    found = refresh_run(run, 0.25, tmp_path / "store")
    n = len(run.split.train)
    assert found.store.spec.binding == run.binding
    assert found.store.n == n
    assert found.stale.rows == found.store.spec.stale.rows == n - round(0.25 * n)
    ids = torch.from_numpy(run.split.train.ids)
    mine, before, after = (store.read(ids) for store in (found.store, old, anew))
    fresh = (mine != before).any(1)
    assert int(fresh.sum()) == round(0.25 * n)
    # Batches differ, so float32 sums do, and bfloat16 rounds: .002 a row.
    assert (mine - after)[fresh].norm() < 3e-3 * after[fresh].norm()
    assert torch.equal(mine[~fresh], before[~fresh])
    error = float((before - after)[fresh].norm() / after[fresh].norm())
    assert found.stale.error == pytest.approx(error, rel=0.02)
    cosine = torch.cosine_similarity(before[fresh], after[fresh], dim=1).mean()
    assert found.stale.cosine == pytest.approx(float(cosine), abs=1e-4)
    assert found.stale.error > 0.01
    kept = stale_influences(before[fresh], after[fresh], run.config.debias.damping)
    assert found.stale.influences == pytest.approx(kept, abs=0.01)
    assert kept < 0.99
    # An estimate for the rows that were not looked at.
    whole = float((before - after)[~fresh].norm() / after[~fresh].norm())
    assert found.stale.error == pytest.approx(whole, rel=0.5)
    assert found.store.facts() is None
    assert found.store.audit() is not None
    assert not (tmp_path / "store.recording").exists()


def test_the_whole_is_what_recording_at_the_updated_adapter_gives(run, anew, tmp_path):
    found = refresh_run(run, 1, tmp_path / "store")
    assert found.store.spec == anew.spec
    assert found.stale.rows == 0
    assert found.store.content_sha256() == anew.content_sha256()
    assert torch.equal(found.store.facts().gradient_sum, anew.facts().gradient_sum)


def test_a_request_warns_with_the_figure(run, tmp_path):
    stale = refresh_run(run, 0.25, tmp_path / "store").stale
    found = fudlr.debias(run, store=str(tmp_path / "store"), **SHORT)
    assert found.summary["solver"]["rows"] == "store"
    assert found.summary["solver"]["stale"]["error"] == stale.error
    said = [text for text in found.summary["warnings"] if "stale" in text]
    assert len(said) == 1
    assert f"relative error {stale.error:.1%}" in said[0]
    assert found.summary["solver"]["stale"]["influences"] == stale.influences
    assert f"{stale.influences:.1%} of the squares of probe influences" in said[0]
    assert found.summary["solver"]["audit"] == Store.open(tmp_path / "store").audit()
    with pytest.raises(UsageError, match="rows memory"):
        fudlr.debias(run, store=str(tmp_path / "store"), rows="memory", **SHORT)
    old = run.folder / "store"
    with pytest.raises(StoreError, match="made from another adapter"):
        fudlr.debias(run, store=str(old), **SHORT)


def test_the_seed_chooses_and_a_killed_refresh_goes_on(run, tmp_path, monkeypatch):
    config = run.config.record.model_copy(update={"batch": 64, "audit": 0})
    alone = refresh_run(run, 0.5, tmp_path / "alone", config=config).store
    passes = []

    def stop(*arguments, **options):
        passes.append(1)
        if len(passes) > 1:
            raise KeyboardInterrupt
        return sketched(*arguments, **options)

    sketched = run.engine.reduce
    monkeypatch.setattr(run.engine, "reduce", stop)
    monkeypatch.setattr(scoring, "_shard_rows", lambda *_: 64)
    with pytest.raises(KeyboardInterrupt):
        refresh_run(run, 0.5, tmp_path / "store", config=config)
    assert not (tmp_path / "store").exists()
    assert Store.open(tmp_path / "store.recording").n == 64
    left = []
    monkeypatch.setattr(
        run.engine, "reduce", lambda *each, **named: left.append(1) or sketched(*each, **named)
    )
    again = refresh_run(run, 0.5, tmp_path / "store", config=config).store
    assert len(left) == -(-round(0.5 * len(run.split.train)) // 64) - 1
    assert again.content_sha256() == alone.content_sha256()
    other = config.model_copy(update={"seed": 1})
    assert refresh_run(run, 0.5, tmp_path / "other", config=other).store.content_sha256() != (
        alone.content_sha256()
    )


def test_what_is_not_this_runs_is_refused(run, run_folder, anew, tmp_path):
    old = run.folder / "store"
    with pytest.raises(StoreError, match="this very adapter"):
        refresh_run(run, 0.5, tmp_path / "out", anew.folder)
    with pytest.raises(UsageError, match="the stale store itself"):
        refresh_run(run, 0.5, old)
    for share in (0, 1.5, float("nan")):
        with pytest.raises(UsageError, match=r"not in \(0, 1\]"):
            refresh_run(run, share, tmp_path / "out")
    with pytest.raises(UsageError, match="none in"):
        refresh_run(run, 0.5, tmp_path / "out", tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        refresh_run(run, 0.5, tmp_path / "full")
    foreign = load_run(run_folder)
    foreign.config = foreign.config.model_copy(
        update={"data": foreign.config.data.model_copy(update={"window": 3})}
    )
    foreign.theta = foreign.theta + 1
    with pytest.raises(StoreError, match="another order"):
        refresh_run(foreign, 0.5, tmp_path / "out", old)
    assert not (tmp_path / "out").exists()


def test_the_mark_is_in_every_shard_and_survives_a_merge(run, tmp_path):
    found = refresh_run(run, 0.25, tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    assert Store.open(tmp_path / "store").spec.stale == found.stale
    joint = merge([tmp_path / "store"], tmp_path / "joint")
    assert joint.spec.stale == found.stale
    shard = tmp_path / "joint" / "rows-0-000000.safetensors"
    shutil.copy(run.folder / "store" / "rows-0-000000.safetensors", shard)
    with pytest.raises(StoreError, match="another adapter, other stale rows"):
        Store.open(tmp_path / "joint")


def test_the_command(run_folder, updated, tmp_path):
    out, runner = str(tmp_path / "store"), CliRunner()
    given = ["record", str(run_folder), "--adapter", str(updated), "--refresh", "0.25"]
    done = runner.invoke(app, [*given, "--out", out], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Rows of the earlier adapter" in done.stderr
    assert f"--adapter {updated} --store {out}" in done.stderr
    assert "stale rows" in done.stdout
    for wrong in (given, [*given[:4], "--stale", out]):
        with pytest.raises(UsageError, match=r"--out|--refresh"):
            runner.invoke(app, wrong, catch_exceptions=False)
    result = tmp_path / "result"
    asked = ["debias", str(run_folder), "--adapter", str(updated), "--store", out]
    asked += ["--quick", "--out", str(result)]
    assert runner.invoke(app, asked, catch_exceptions=False).exit_code == 0
    summary = json.loads((result / "summary.json").read_text())
    assert any("stale" in text for text in summary["warnings"])
