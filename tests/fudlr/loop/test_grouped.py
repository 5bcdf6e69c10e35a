"""Masks and adapters for groups and sets of users, from one gradient pass and one solve."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from fudlr import load_run
from fudlr.cli import app, is_expected
from fudlr.common.errors import UsageError
from fudlr.debias.steps import request
from fudlr.evaluation import make_prompts
from fudlr.gradients import metric as gradients
from fudlr.groups import UserSet, debias_groups, sets_of_column
from fudlr.lora import load
from fudlr.metrics import evaluate
from fudlr.pipeline import evidence
from fudlr.pipeline.plan import prepare
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[3] / "examples"
OPTIONS = {
    "objective": "arp", "lambda_acc": 0.0, "batch": 20, "rows": "memory",
    "force": True,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _solved_to_the_end():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "MAX_STEPS", 60)
        yield


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder)


@pytest.fixture(scope="module")
def config(run):
    return run.config.debias.model_copy(update=OPTIONS)


@pytest.fixture(scope="module")
def sets(run):
    some = np.arange(run.interactions.n_users) % 5 == 0  # across the groups
    return [*sets_of_column(run.interactions, "gender"), UserSet("fifth", some)]


@pytest.fixture(scope="module")
def found(run, sets, config):
    return debias_groups(run, sets, config)


@pytest.mark.parametrize("place", [0, 3])
def test_each_is_the_usual_request_of_its_users_alone(run, found, sets, config, place):
    one = found.found[place]
    member = np.ones(run.interactions.n_users, bool) if place == 0 else sets[place - 1].member
    valid = run.split.valid.take(member[run.split.valid.user])
    alone = replace(run, split=replace(run.split, valid=valid))
    run.engine.load(run.theta)
    _, usual, _ = request(prepare(alone, config))
    run.engine.load(run.theta)
    assert one.users[0] == len(valid)
    own, expected = one.scored.influence.of(*one.predicted), usual.scored.influence.of("arp")
    # Solved to the end: a rest of the residual swaps samples at the budget's edge.
    assert (own - expected).norm() < 2e-2 * expected.norm()
    assert torch.equal(one.mask, usual.mask)
    shift = usual.update.theta - run.theta
    assert (one.theta - usual.update.theta).norm() < 1e-5 * shift.norm()


def test_own_mask_is_predicted_to_do_most(found):
    for one in found.found:
        (name,) = one.predicted
        for other in found.found:
            assert one.scored.predicted(one.mask)[name] <= one.scored.predicted(other.mask)[name]
    assert len({tuple(one.mask.tolist()) for one in found.found}) == len(found.found)
    assert found.overlap(found.found[0]) == 1
    assert all(found.overlap(one) < 1 for one in found.found[1:])


def test_figures_are_of_the_sets_own_users(run, found, sets):
    test = make_prompts(run.split, run.split.test, run.config.data)
    for each, one in zip(sets, found.found[1:], strict=True):
        prompts = test.take(np.flatnonzero(each.member[test.samples.user]))
        for theta, figures in ((run.theta, one.before), (one.theta, one.after)):
            run.engine.load(theta)
            scores = run.recommender.evaluate(prompts.samples)[0]
            assert figures["arp_soft"] == pytest.approx(
                evaluate(scores, prompts.side)["arp_soft"], rel=1e-5
            )
        value, low, high = one.change["arp_soft"]
        assert value == pytest.approx(one.after["arp_soft"] - one.before["arp_soft"], rel=1e-3)
        assert low <= one.after["arp_soft"] - one.before["arp_soft"] <= high


def test_disjoint_sets_share_one_backward_pass(run, config, monkeypatch):
    users, prompts, went_back = run.interactions.n_users, len(run.split.valid), 0
    real = gradients._pull

    def counted(way, through_scores, through_loss):
        nonlocal went_back
        live = through_scores.flatten(1).any(1) | through_loss.any(1)
        went_back += int(live.sum()) * through_loss.shape[1]
        return real(way, through_scores, through_loss)

    monkeypatch.setattr(gradients, "_pull", counted)
    many = [UserSet(str(i), np.arange(users) % 6 == i) for i in range(6)]
    debias_groups(run, many, config)
    # Everyone's pass, the sets' together, and batches (of 20) that two sets share.
    assert 2 * prompts <= went_back <= 2 * prompts + 5 * 20


def test_a_costly_adapter_and_wrong_sets_are_named(run, config, sets, monkeypatch):
    monkeypatch.setattr("fudlr.groups.request.MAX_LOSS_RISE", 0.0)
    said = debias_groups(run, sets[:1], config).warnings
    assert any("raises the test loss" in each for each in said)
    with pytest.raises(UsageError, match="twice"):
        debias_groups(run, [sets[0], sets[0]], config)
    with pytest.raises(UsageError, match="no set"):
        debias_groups(run, [], config)


def test_the_command(run, run_folder, tmp_path):
    (tmp_path / "few.txt").write_text(
        "\n".join(run.interactions.users["user_id"].cast(str).to_list()[:40])
    )
    out = tmp_path / "out"
    words = ["grouped", str(run_folder), "--out", str(out), "--by", "gender", "--users",
             str(tmp_path / "few.txt"), "--objective", "arp", "--budget", "0.05",
             "--set", "debias.force=true"]  # fmt: skip
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "few" in result.output
    record = json.loads((out / "grouped.json").read_text())
    names = [one["name"] for one in record["sets"]]
    assert names[0] == "everyone"
    assert names[-1] == "few"
    masks = pl.read_parquet(out / "masks.parquet")
    assert masks["sample_id"].to_list() == run.split.train.ids.tolist()
    for one in record["sets"]:
        assert masks[f"mask[{one['name']}]"].sum() == one["removed"] > 0
    own = load(run.recommender.model.unload(), out / record["sets"][-1]["adapter"])
    assert any("lora_B" in name and bool(p.any()) for name, p in own.named_parameters())
    (tmp_path / "none.txt").write_text("nobody\n")
    result = CliRunner().invoke(app, [*words[:4], "--users", str(tmp_path / "none.txt")])
    assert is_expected(result.exception)
    assert "nobody" in str(result.exception)


def test_the_example(run_folder, capsys):
    runpy.run_path(str(EXAMPLES / "occupations.py"))["main"](str(run_folder), "gender")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(line[-1], line[1][0]) for line in lines] == [("everyone", "-"), ("A", "-"), ("B", "-")]
