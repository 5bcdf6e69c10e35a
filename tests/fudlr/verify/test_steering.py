"""Steering modes: named so everywhere, inside their bounds, and further than the removal goes."""

import json
from importlib import import_module
from types import SimpleNamespace

import fudlr
import polars as pl
import pytest
import torch
from fudlr import load_run, verify_result, write_result
from fudlr.common.errors import UsageError
from fudlr.config import RunConfig, merge
from fudlr.debias.steering import MODES, OWN_MASKS

OPTIONS = {"curve": (), "heldout": False, "lambda_acc": 0.5, "rows": "memory"}


@pytest.fixture(scope="module")
def removal(run_folder):
    return fudlr.debias(load_run(run_folder), **OPTIONS)


@pytest.fixture(scope="module", params=list(MODES))
def steered(request, run_folder):
    return fudlr.debias(load_run(run_folder), steering=request.param, steering_steps=4, **OPTIONS)


def test_a_mode_goes_further_than_the_removal_on_what_it_follows(steered, removal):
    """On the validation prompts' objective; what it gives on others is for the benchmark to say."""
    about = steered.summary["steering"]
    path = about.get("path") or about["tried"]
    assert about["mode"] == steered.config.steering
    assert path[-1]["objective"] < path[0]["objective"] < 0
    if about["mode"] in ("line_search", "soft"):  # their first step is the plain removal
        first = removal.summary["after"]["arp_soft"] / removal.summary["before"]["arp_soft"] - 1
        assert path[0]["objective"] == pytest.approx(first, abs=0.03)
    assert "steering" in steered.summary["seconds"]
    assert "steering" in steered.summary["cost"]["stages"]


def test_masks_stay_within_their_bounds(steered, removal):
    mode, mask = steered.config.steering, steered.mask.float()
    n, room = len(mask), int(0.1 * len(mask))
    assert float(mask.abs().sum()) <= room * (1 + 1e-6)
    assert float(mask.abs().max()) <= 1 + 1e-6
    if mode == "soft":
        assert float(mask.min()) >= 0
        assert int(((mask > 0.01) & (mask < 0.99)).sum()) > 0
    elif mode == "signed":
        assert int((mask < 0).sum()) > 0
        assert int((mask > 0).sum()) > 0
    else:
        assert torch.equal(mask, removal.mask.float())
        moved = steered.theta - load_run(steered.run.folder).theta
        if mode == "line_search":
            whole = removal.answer.update.delta
            length = steered.summary["steering"]["length"]
            assert length > 1
            torch.testing.assert_close(moved, length * whole, rtol=1e-3, atol=1e-6)
    assert n == len(removal.mask)


def test_it_is_called_steering_and_held_against_retraining(steered, tmp_path):
    mode = steered.config.steering
    folder = write_result(tmp_path / "r", steered)
    summary = json.loads((folder / "summary.json").read_text())
    assert any("not freed of samples" in said for said in summary["warnings"])
    page, card = ((folder / f).read_text() for f in ("report.html", "adapter/README.md"))
    assert f"Steering ({mode.replace('_', ' ')}), which is no removal of samples" in page
    assert "Taking out" not in page
    assert "Steered, not removed" in card
    if mode != "signed":
        return
    run = load_run(steered.run.folder)
    weights = []

    def remember(_run, jobs, *_arguments):
        weights.append(jobs[0].weights)
        return [SimpleNamespace(theta=run.theta, seconds=1.0)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("fudlr.verify.case"), "retrain", remember)
        verify_result(folder, run)
    torch.testing.assert_close(weights[0], 1 - steered.mask)
    assert float(weights[0].max()) > 1
    table = pl.read_parquet(folder / "mask.parquet")
    assert table["mask"].dtype == pl.Float32


def test_vertices_are_the_best_allowed_masks(monkeypatch):
    """max Σ −slope·v over the allowed masks, by hand."""
    slope = torch.tensor([3.0, -1.0, -4.0, 0.5])
    config = merge(RunConfig(), {"debias.lambda_spa": 0.6}).debias
    steering = SimpleNamespace(job=SimpleNamespace(config=config))
    found = {}
    for name in ("soft", "signed"):
        monkeypatch.setattr(
            import_module(f"fudlr.debias.steering.{name}"),
            "frank_wolfe",
            lambda _, vertex, name=name: found.update({name: vertex}),
        )
        MODES[name](steering)
    assert found["soft"](slope, 3).float().tolist() == [0, 1, 1, 0]
    assert found["signed"](slope, 2).tolist() == [-1, 0, 1, 0]
    assert found["signed"](slope, 4).tolist() == [-1, 1, 1, 0]  # the last costs more than it brings


def test_what_cannot_be_steered_is_refused(run_folder):
    run = load_run(run_folder)
    with pytest.raises(UsageError, match="one_step"):
        fudlr.debias(run, steering="soft", update="newton", **OPTIONS)
    with pytest.raises(UsageError, match="entries between layers"):
        fudlr.debias(run, steering="soft", curvature="kfac", **OPTIONS)
    assert set(OWN_MASKS) < set(MODES)
