"""The loop from a trained run to a verified result, on synthetic data."""

import json

import fudlr
import polars as pl
import pytest
import torch
from fudlr import load_run, verify_result, write_result
from fudlr.debias import steps
from fudlr.evaluation import make_prompts, measure
from fudlr.train.adapter import train_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM

# Steered by popularity alone, the effect is above the noise.
OPTIONS = {"objective": "arp", "also": ("hellinger", "dp", "val_loss"), "lambda_acc": 0.0}
SHORT = {"curve": (), "heldout": False}


@pytest.fixture(scope="module")
def result(run_folder):
    run = load_run(str(run_folder))  # a name serves as well as a Path
    return fudlr.debias(run, curve=(0.05, 0.1), **OPTIONS)


@pytest.fixture(scope="module")
def result_folder(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "arp"
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
    assert summary["most_popular"]["arp"] > summary["before"]["arp"]
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
    assert table["score"].is_finite().all()
    page = (result_folder / "report.html").read_text()
    assert str(removed.sort("score")["user_id"][0]) in page, "the report names the samples"


def test_closed_form_goes_where_retraining_goes(summary):
    before, after, retrained, predicted = (
        summary[state]["arp_soft"] for state in ("before", "after", "retrained", "predicted")
    )
    assert retrained < before
    # A flipped sign gives about -1, a forgotten 1/n far more than 2.
    assert 0.5 < summary["agreement"]["arp_soft"] < 1.6
    assert 0.3 < (predicted - before) / (after - before) < 3


def test_peft_loads_an_adapter_of_the_reported_figures(result_folder, run_folder, summary):
    run = load_run(run_folder)
    base = AutoModelForCausalLM.from_pretrained(run_folder / "base")
    run.recommender.model = PeftModel.from_pretrained(base, result_folder / "adapter").eval()
    prompts = (
        make_prompts(run.split, s, run.config.data) for s in (run.split.valid, run.split.test)
    )
    figures = measure(run.recommender, *prompts).metrics
    for name, value in summary["after"].items():
        assert figures[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_same_seed_gives_the_same_and_a_curve_of_some_users_stands_where_all_would(
    run_folder, result, monkeypatch
):
    monkeypatch.setattr(steps, "CURVE_USERS", 60)
    again = fudlr.debias(load_run(run_folder), curve=(0.05,), heldout=False, **OPTIONS)
    assert torch.equal(again.mask, result.mask)
    assert again.summary["after"] == result.summary["after"]
    (some,), (whole, at_budget) = again.curve, result.curve
    assert (some["users"], whole["users"]) == (60, len(result.test.samples))
    # At the request's own budget all users' curve is the request's own figure.
    assert at_budget["predicted"]["arp_soft"] == pytest.approx(
        result.summary["after"]["arp_soft"], rel=1e-6
    )
    # Changes of some users: of the same sign and size, and not the same.
    before = result.summary["before"]["arp_soft"]
    of_some, of_all = (point["predicted"]["arp_soft"] - before for point in (some, whole))
    assert of_some != of_all
    assert 0.5 < of_some / of_all < 2


def test_streamed_rows_give_the_mask_of_rows_in_memory(run_folder, monkeypatch):
    monkeypatch.setattr("fudlr.pipeline.evidence.MAX_STEPS", 5)
    stored, streamed = (
        fudlr.debias(load_run(run_folder), rows=rows, **SHORT) for rows in ("memory", "stream")
    )
    agree = (stored.mask == streamed.mask).float().mean()
    assert agree > 0.999
    torch.testing.assert_close(stored.theta, streamed.theta, rtol=1e-3, atol=1e-5)


def test_retraining_weighs_losses_and_divides_by_the_full_batch(run_folder):
    """Half the weight everywhere is half the gradient; a divisor of kept samples would undo it."""
    run = load_run(run_folder)
    config, samples = run.config.train.model_copy(update={"epochs": 1}), run.split.train
    plain, ones, halves = (
        train_adapter(run.recommender, run.engine, samples, config, run.start, weights=weights)
        for weights in (None, torch.ones(len(samples)), torch.full((len(samples),), 0.5))
    )
    torch.testing.assert_close(ones.theta, plain.theta, rtol=1e-5, atol=1e-6)
    assert not torch.equal(plain.theta, run.start)
    assert halves.losses[0] == pytest.approx(plain.losses[0] / 2, rel=0.05)


def test_a_large_and_costly_request_warns_in_summary_and_report(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fudlr.diagnostics.update.MAX_LOSS_RISE", 0.0)
    result = fudlr.debias(load_run(run_folder), lambda_acc=0.0, budget=0.3, **SHORT)
    assert result.after.metrics["val_loss"] > result.before.metrics["val_loss"]
    page = (write_result(tmp_path / "large", result) / "report.html").read_text()
    for said in ("beyond 20%", "validation loss"):
        assert any(said in warning for warning in result.summary["warnings"])
        assert said in page
