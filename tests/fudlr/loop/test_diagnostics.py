"""Each diagnostic, provoked for real on a small run; the healthy run passes all."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import fudlr
import numpy as np
import pytest
import torch
from fudlr import load_run, write_result
from fudlr.cli import app
from fudlr.common.errors import RefusedError
from fudlr.diagnostics import DIAGNOSTICS, Facts
from fudlr.diagnostics.influence import sign_test
from fudlr.evaluation import Measured, make_prompts
from fudlr.influence.curvature import CURVATURES, Identity
from fudlr.influence.mask import gradient_descent_mask
from fudlr.metrics import METRICS, catalogue_softmax, from_function, statistics
from fudlr.pipeline import request
from fudlr.sweep import Grid, sweep_run
from typer.testing import CliRunner

QUICK = {"curve": (), "heldout": False}


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder)


@pytest.fixture(scope="module")
def unseen(run):
    """The test prompts where nobody has seen anything."""
    side = make_prompts(run.split, run.split.test, run.config.data).side
    return replace(side, seen=torch.zeros_like(side.seen))


def found(summary, name):
    return next((each for each in summary["diagnostics"] if each["name"] == name), None)


def diagnosed(name, scores, side, **plan):
    """What a diagnostic finds in lists by `scores` on the test prompts `side`."""
    kept = statistics(scores, side)
    facts = Facts(SimpleNamespace(test=SimpleNamespace(side=side), **plan),
                  before=Measured(kept.values, kept, torch.zeros(len(scores))))  # fmt: skip
    return DIAGNOSTICS[name](facts)


def changed(run, **arrays):
    """The run with other data behind the same samples."""
    return replace(run, split=replace(run.split, **arrays))


def grouped(run, codes):
    """The run with other groups of its users."""
    users = run.interactions.users.with_columns(gender=codes)
    interactions = replace(run.interactions, users=users)
    split = replace(run.split, interactions=interactions)
    for part in ("train", "valid", "test"):
        split = replace(split, **{part: replace(getattr(split, part), interactions=interactions)})
    return replace(run, split=split)


@pytest.mark.numerics
@pytest.mark.parametrize("objective", ["arp", "hellinger"])
def test_a_healthy_run_passes(run, objective):
    summary = fudlr.debias(run, objective=objective, **QUICK).summary
    assert {each["severity"] for each in summary["diagnostics"]} == {"passed"}
    expected = set(DIAGNOSTICS) - {"oscillation", "due", "bend"}
    expected -= {"arp": {"chance", "small_groups"}, "hellinger": set()}[objective]
    assert {each["name"] for each in summary["diagnostics"]} == expected


def test_lists_that_do_not_depend_on_the_user_are_warned_of(unseen):
    """One ranking for all shares all, drawn ones K of M; of three lists the pairs are counted."""
    for seed in range(3):
        drawn = torch.rand(unseen.seen.shape, generator=torch.Generator().manual_seed(seed))
        for scores, severity, share in (
            (drawn[:1].expand_as(drawn).contiguous(), "warn", 1.0),
            (drawn, "passed", unseen.k / unseen.seen.shape[1]),
        ):
            finding = diagnosed("lists_alike", scores, unseen)
            assert finding.severity == severity
            assert finding.measured == pytest.approx(share, abs=0.02)
    three = replace(unseen.take(torch.arange(3)), k=2)
    scores = torch.zeros(three.seen.shape)
    scores[:, :4] = torch.tensor([[4.0, 3, 2, 1], [4, 1, 3, 2], [3, 4, 1, 2]])
    # Lists {0, 1}, {0, 2}, {1, 0}: pairs share 1, 2 and 1 of 2 items.
    assert diagnosed("lists_alike", scores, three).measured == pytest.approx(4 / 3 / 2)


def test_lists_that_ties_decide_are_warned_of(unseen):
    """Of 20 prompts, K = 2: one tie across the list's end passes, two are too many."""
    side = replace(unseen.take(torch.arange(20)), k=2)
    for count, severity in ((0, "passed"), (1, "passed"), (2, "warn")):
        scores = torch.arange(side.seen.shape[1]).float().expand(20, -1).clone()
        scores[:count, -3] = scores[:count, -2]  # the second and the third
        scores[:, 1] = scores[:, 0]  # far from the list
        finding = diagnosed("ties", scores, side)
        assert (finding.measured, finding.severity) == (count / 20, severity)


def test_short_training_small_groups_and_flat_metrics_are_warned_of_or_refused(run):
    """The same adapter, as if stopped at the third epoch, judged by few users of one group."""
    valid = run.split.valid
    group = run.interactions.users["gender"].gather(valid.user).to_numpy()
    of_b = (group == "B").cumsum() * (group == "B")
    few, tiny = (valid.take(np.flatnonzero(of_b <= size)) for size in (12, 3))
    flat = {"popularity": run.split.popularity * 0 + 7}
    odd = replace(changed(run, valid=few, **flat), losses=run.losses[:3])
    summary = fudlr.debias(odd, objective="hellinger", also=("arp",), **QUICK).summary
    for name in ("training", "small_groups", "no_gradient"):
        assert found(summary, name)["severity"] == "warn"
    assert found(summary, "small_groups")["measured"] == 12
    assert any("has not converged" in said for said in summary["warnings"])
    with pytest.raises(RefusedError, match=r"'B', has 3 of"):
        fudlr.debias(changed(run, valid=tiny), objective="hellinger", **QUICK)
    with pytest.raises(RefusedError, match="arp has no gradient"):
        fudlr.debias(changed(run, **flat), objective="arp", lambda_acc=0.0, **QUICK)


def kept(name, draw, **options):
    """The result where `name` finds nothing to remove in what is drawn.

    Its p is above a fifth in four drawings of five, whatever the run: in none of eight hardly ever.
    """
    for seed in range(8):
        drawn = draw(torch.Generator().manual_seed(seed))
        result = fudlr.debias(drawn, **options, **QUICK)
        if found(result.summary, name)["severity"] == "keep":
            return result
    raise AssertionError(f"{name} would have removed samples in all eight drawings")


@pytest.mark.numerics
def test_a_gap_of_chance_leaves_nothing_to_remove(run, tmp_path):
    def draw(generator):
        codes = torch.randint(2, (run.interactions.n_users,), generator=generator)
        return grouped(run, codes.numpy().astype(str))

    result = kept("chance", draw, objective="dp")
    assert int(result.mask.sum()) == 0
    assert torch.equal(result.theta, run.theta)
    assert any("Nothing here to remove" in said for said in result.summary["warnings"])
    swept = sweep_run(result.run, Grid(), result.config)
    assert any("Nothing here to remove" in said for said in swept["warnings"])
    page = write_result(tmp_path / "r", result) / "report.html"
    assert "Nothing here to remove" in page.read_text()


@pytest.mark.numerics
def test_influence_that_is_noise_leaves_nothing_to_remove(run):
    """A share that counts for or against by a draw for every user: each sign is as likely."""

    def draw(generator):
        drawn = torch.randint(1000, (run.interactions.n_items,), generator=generator)

        def signed(scores, side):
            sign = 1 - 2 * ((side.seen * drawn).sum(1) % 2)
            three = side.popularity.topk(3).indices
            return 1 + (sign * catalogue_softmax(scores, side.seen)[:, three].sum(1)).mean()

        METRICS["signed"] = from_function("signed", signed, lower_is_better=True)
        return run

    assert int(kept("noise", draw, objective="signed", lambda_acc=0.0).mask.sum()) == 0


def test_the_sign_test_is_exact_on_noise_and_sees_a_common_part():
    generator = torch.Generator().manual_seed(0)
    ps = []
    for _ in range(400):
        parts = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        ps.append(sign_test(parts @ parts.T))
    assert 0.02 < sum(p <= 0.05 for p in ps) / 400 < 0.08  # its own level, 6 of 128
    assert sign_test((parts + 3) @ (parts + 3).T) == 1 / 128


def test_a_mask_that_oscillates_is_refused(run, monkeypatch):
    descent = {"mask": "descent", "objective": "arp", **QUICK}
    summary = fudlr.debias(run, **descent).summary
    assert found(summary, "oscillation")["severity"] == "passed"
    few = partial(gradient_descent_mask, steps=20)
    monkeypatch.setattr(request, "gradient_descent_mask", few)
    with pytest.raises(RefusedError, match="changed sides"):
        fudlr.debias(run, **descent)


def test_a_recommender_no_better_than_most_popular_is_warned_of(run):
    """Of 200 users: hits of its own for a tenth of them more, and for none more."""
    side = make_prompts(run.split, run.split.test, run.config.data).side
    popular = side.popularity.expand(len(side.target), -1).clone()
    better = popular.clone()
    better[torch.arange(len(better)), side.target] = 1e6  # the target first for everyone
    for scores, severity in ((popular, "warn"), (better, "passed"), (better.flip(0), "warn")):
        finding = diagnosed("most_popular", scores, side, config=run.config.debias)
        assert finding.severity == severity


def test_the_ranking_looks_at_its_interval(run):
    """15 hits against 9 of 200 users are no sign; 60 against 30 are."""
    plan = SimpleNamespace(
        test=SimpleNamespace(side=SimpleNamespace(k=10)), config=run.config.debias,
        update="closed_form",
    )  # fmt: skip
    for interval, last, severity in (
        ((-0.05, 0.01), 0.045, "passed"),
        ((-0.05, -0.01), 0.045, "warn"),
        ((-0.05, -0.01), 0.03, "refuse"),
        ((-0.01, -0.001), 0.07, "passed"),
    ):
        before, after = (Measured({"ndcg@10": v}, None, None) for v in (0.075, last))
        facts = Facts(plan, before=before, after=after, change={"ndcg@10": interval})
        finding = DIAGNOSTICS["ranking"](facts)
        assert finding.severity == severity
        assert "empirical_fisher" not in finding.advice  # it is in use


class Overconfident(Identity):
    """A curvature that is a hundred times too flat."""

    couples_layers = True

    def product(self, vectors):
        return -0.999 * vectors

    def inverse(self, rhs, damping):
        return rhs / (damping - 0.999)


def test_a_destructive_update_is_refused_unless_forced(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(CURVATURES, "overconfident", Overconfident)
    settings = ["--set", "debias.curvature=overconfident", "--set", "debias.lambda_acc=0"]
    arguments = ["debias", str(run_folder), "--out", str(tmp_path / "r"), *settings,
                 "--damping=1", "--quick"]  # fmt: skip
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, RefusedError)
    assert "diagnostic shift" in str(refused.exception)
    assert not (tmp_path / "r").exists()
    forced = CliRunner().invoke(app, [*arguments, "--force"], catch_exceptions=False)
    assert forced.exit_code == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    severities = {each["name"]: each["severity"] for each in summary["diagnostics"]}
    assert severities["shift"] == severities["loss"] == "refuse"
    assert severities["ranking"] in ("warn", "refuse")
    assert any(said.startswith("Forced: The update shifts") for said in summary["warnings"])
