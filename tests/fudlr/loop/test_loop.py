"""The loop from a trained run to a verified result, on synthetic data."""

import json
import subprocess
import sys

import fudlr
import numpy as np
import polars as pl
import pytest
import torch
from fudlr import load_run, verify_result, write_result
from fudlr.pipeline.evidence import sample_candidates
from fudlr.train.adapter import train_adapter


@pytest.fixture(scope="module")
def result_folder(run_folder, tmp_path_factory):
    run = load_run(str(run_folder))  # a name serves as well as a Path
    result = fudlr.debias(run, objective="arp + 0.5*hellinger", also=("dp",), curve=(0.05, 0.1))
    folder = tmp_path_factory.mktemp("results") / "mixed"
    write_result(str(folder), result)
    verify_result(str(folder))
    return folder


@pytest.fixture(scope="module")
def summary(result_folder):
    return json.loads((result_folder / "summary.json").read_text())


def test_output_contract(result_folder, summary):
    names = {path.name for path in result_folder.iterdir()}
    assert names >= {"adapter", "mask.parquet", "summary.json", "report.html", "config.yaml"}
    for state in ("before", "after", "retrained"):
        assert {
            "arp", "aplt", "gini", "coverage", "hellinger", "dp", "hellinger@5", "hr@5", "ndcg@5",
            "val_loss", "test_loss",
        } <= set(summary[state])  # fmt: skip
    for part in ("predicted", "intervals", "heldout", "null", "seconds", "config", "versions"):
        assert summary[part], part
    assert summary["seed"] == 0
    assert set(summary["heldout"]) == {"before", "after", "intervals"}
    assert "retraining" in summary["seconds"]
    assert not [p for p in result_folder.parent.iterdir() if p.name.startswith(".")]


def test_mask_table_has_one_readable_row_a_sample(result_folder, run_folder, summary):
    table = pl.read_parquet(result_folder / "mask.parquet")
    samples = load_run(run_folder).split.train
    assert table["sample_id"].to_list() == samples.ids.tolist()
    assert {"influence_arp", "influence_hellinger", "influence_dp", "influence_accuracy"} <= set(
        table.columns
    )
    removed = table.filter(pl.col("mask") == 1)
    assert len(removed) == summary["samples"]["removed"] == int(0.1 * len(samples))
    assert removed["score"].max() < table.filter(pl.col("mask") == 0)["score"].min()
    assert table["history"].list.len().min() > 0


@pytest.fixture(scope="module")
def popularity(run_folder, tmp_path_factory):
    """Summary of a result that steers by popularity alone, where the effect is above the noise."""
    result = fudlr.debias(load_run(run_folder), lambda_acc=0.0, curve=(), heldout=False)
    folder = write_result(tmp_path_factory.mktemp("results") / "arp", result)
    return verify_result(folder).summary


def test_closed_form_goes_where_retraining_goes(popularity):
    before, after, retrained = (popularity[s] for s in ("before", "after", "retrained"))
    assert retrained["arp_soft"] < before["arp_soft"]
    assert after["arp_soft"] < before["arp_soft"]
    # A flipped sign gives about -1, a forgotten 1/n far more than 2.
    assert 0.5 < popularity["agreement"]["arp_soft"] < 1.6


def test_predicted_change_has_the_sign_and_size_of_the_measured(popularity):
    predicted = popularity["predicted"]["arp_soft"] - popularity["before"]["arp_soft"]
    measured = popularity["after"]["arp_soft"] - popularity["before"]["arp_soft"]
    assert 0.3 < predicted / measured < 3


def test_adapter_gives_the_reported_figures_in_a_fresh_process(result_folder, run_folder, summary):
    code = """
import sys, torch, json
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
from fudlr import load_run
from fudlr.evaluation import make_prompts, measure
run = load_run(Path(sys.argv[1]))
base = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/base")
run.recommender.model = PeftModel.from_pretrained(base, sys.argv[2] + "/adapter").eval()
prompts = [make_prompts(run.split, s, run.config.data) for s in (run.split.valid, run.split.test)]
print(json.dumps(measure(run.recommender, *prompts).metrics))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_folder), str(result_folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(done.stdout.splitlines()[-1])
    for name, value in summary["after"].items():
        assert figures[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_same_seed_gives_the_same_mask_and_figures(run_folder):
    results = [
        fudlr.debias(load_run(run_folder), curve=(), heldout=False, budget=0.05) for _ in range(2)
    ]
    assert torch.equal(results[0].mask, results[1].mask)
    assert results[0].summary["after"] == results[1].summary["after"]


def test_streamed_rows_give_the_mask_of_rows_in_memory(run_folder):
    stored, streamed = (
        fudlr.debias(load_run(run_folder), curve=(), heldout=False, rows=rows, max_steps=5)
        for rows in ("memory", "stream")
    )
    agree = (stored.mask == streamed.mask).float().mean()
    assert agree > 0.999
    torch.testing.assert_close(stored.theta, streamed.theta, rtol=1e-3, atol=1e-5)


def test_objectives_steer_different_samples(run_folder):
    masks = {
        name: fudlr.debias(
            load_run(run_folder), objective=name, curve=(), heldout=False, lambda_acc=0.0
        ).mask
        for name in ("arp", "hellinger")
    }
    overlap = (masks["arp"] & masks["hellinger"]).sum() / masks["arp"].sum()
    assert overlap < 0.6


def test_candidates_alone_are_removed(run_folder):
    result = fudlr.debias(load_run(run_folder), candidates=0.2, curve=(), heldout=False)
    n = len(result.mask)
    assert 0 < int(result.mask.sum()) <= int(0.1 * n)
    allowed = sample_candidates(n, 0.2, result.config.seed)
    assert set(result.mask.nonzero().flatten().tolist()) <= set(allowed.tolist())


def test_retraining_with_all_weights_one_is_the_training(run_folder):
    """Over two epochs: rounding grows from step to step, whatever the weights."""
    run = load_run(run_folder)
    config = run.config.train.model_copy(update={"epochs": 2})
    samples = run.split.train
    plain, weighted = (
        train_adapter(run.recommender, run.engine, samples, config, run.start, weights=weights)
        for weights in (None, torch.ones(len(samples)))
    )
    torch.testing.assert_close(weighted.theta, plain.theta, rtol=1e-5, atol=1e-6)
    assert not torch.equal(plain.theta, run.start)


def test_retraining_divides_by_the_full_batch(run_folder):
    """Half the weight everywhere is half the gradient; a divisor of kept samples would undo it."""
    run = load_run(run_folder)
    config = run.config.train.model_copy(update={"epochs": 1})
    n = len(run.split.train)
    losses = []
    for weight in (1.0, 0.5):
        training = train_adapter(
            run.recommender, run.engine, run.split.train, config, run.start,
            weights=torch.full((n,), weight),
        )  # fmt: skip
        losses.append(training.losses[0])
    assert losses[1] == pytest.approx(losses[0] / 2, rel=0.05)


def test_large_budget_warns_in_summary_and_report(run_folder, tmp_path):
    result = fudlr.debias(load_run(run_folder), budget=0.3, curve=(), heldout=False)
    assert any("beyond 20%" in warning for warning in result.summary["warnings"])
    write_result(tmp_path / "large", result)
    assert "beyond 20%" in (tmp_path / "large" / "report.html").read_text()


def test_costly_update_warns(run_folder):
    result = fudlr.debias(
        load_run(run_folder), lambda_acc=0.0, budget=0.2, max_loss_rise=0.0, curve=(), heldout=False
    )
    rose = result.after.metrics["val_loss"] > result.before.metrics["val_loss"]
    warned = any("validation loss" in warning for warning in result.summary["warnings"])
    assert rose == warned
    assert rose, "removing for popularity alone was expected to cost some validation loss"


def test_interrupted_debias_leaves_nothing(run_folder, tmp_path, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    result = fudlr.debias(load_run(run_folder), curve=(), heldout=False)
    monkeypatch.setattr("fudlr.output.results.write_report", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_result(tmp_path / "out", result)
    assert list(tmp_path.iterdir()) == []


def test_report_names_the_samples(result_folder):
    table = pl.read_parquet(result_folder / "mask.parquet").filter(pl.col("mask") == 1)
    top = table.sort("score").row(0, named=True)
    page = (result_folder / "report.html").read_text()
    assert str(top["user_id"]) in page
    assert np.isfinite(table["score"].to_numpy()).all()
