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
from fudlr.diagnostics import DIAGNOSTICS, Facts, Severity, look
from fudlr.diagnostics.influence import sign_test
from fudlr.evaluation import Measured, make_prompts
from fudlr.influence.curvature import CURVATURES, Identity
from fudlr.influence.mask import gradient_descent_mask
from fudlr.metrics import statistics
from fudlr.pipeline import request
from fudlr.sweep import Grid, sweep_run
from typer.testing import CliRunner

pytestmark = pytest.mark.numerics

QUICK = {"curve": (), "heldout": False}


@pytest.fixture
def run(run_folder):
    return load_run(run_folder)


def found(summary, name):
    return next((each for each in summary["diagnostics"] if each["name"] == name), None)


def measured_of(scores, side):
    kept = statistics(scores, side)
    return Measured(kept.values, kept, torch.zeros(len(scores)))


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


@pytest.mark.parametrize("objective", ["arp", "arp + 0.5*hellinger", "hellinger"])
def test_a_healthy_run_passes(run, objective):
    summary = fudlr.debias(run, objective=objective, **QUICK).summary
    assert {each["severity"] for each in summary["diagnostics"]} == {"passed"}
    expected = set(DIAGNOSTICS) - {"oscillation"}
    expected -= {"arp": {"chance", "small_groups"}, "hellinger": set()}.get(objective, {"chance"})
    assert {each["name"] for each in summary["diagnostics"]} == expected


def test_lists_that_do_not_depend_on_the_user_are_warned_of(run):
    """Nobody has seen anything: one ranking for all shares all, drawn ones K of M."""
    side = make_prompts(run.split, run.split.test, run.config.data).side
    side = replace(side, seen=torch.zeros_like(side.seen))
    plan = SimpleNamespace(test=SimpleNamespace(side=side))
    for seed in range(3):
        drawn = torch.rand(side.seen.shape, generator=torch.Generator().manual_seed(seed))
        for scores, severity, share in (
            (drawn[:1].expand_as(drawn).contiguous(), "warn", 1.0),
            (drawn, "passed", side.k / side.seen.shape[1]),
        ):
            facts = Facts(plan, before=measured_of(scores, side))
            finding = DIAGNOSTICS["lists_alike"](facts)
            assert finding.severity == severity
            assert finding.measured == pytest.approx(share, abs=0.02)


def test_what_two_lists_share_is_counted(run):
    """Of three users, K = 2."""
    side = make_prompts(run.split, run.split.test, run.config.data).side.take(torch.arange(3))
    side = replace(side, seen=torch.zeros_like(side.seen), k=2)
    scores = torch.zeros(side.seen.shape)
    scores[:, :4] = torch.tensor([[4.0, 3, 2, 1], [4, 1, 3, 2], [3, 4, 1, 2]])
    facts = Facts(SimpleNamespace(test=SimpleNamespace(side=side)),
                  before=Measured({}, statistics(scores, side), torch.zeros(3)))  # fmt: skip
    # Lists {0, 1}, {0, 2}, {1, 0}: pairs share 1, 2 and 1 of 2 items.
    assert DIAGNOSTICS["lists_alike"](facts).measured == pytest.approx(4 / 3 / 2)


def test_lists_that_ties_decide_are_warned_of(run):
    """Of 20 prompts, K = 2: one tie across the list's end passes, two are too many."""
    side = make_prompts(run.split, run.split.test, run.config.data).side.take(torch.arange(20))
    side = replace(side, seen=torch.zeros_like(side.seen), k=2)
    for count, severity in ((0, "passed"), (1, "passed"), (2, "warn")):
        scores = torch.arange(side.seen.shape[1]).float().expand(20, -1).clone()
        scores[:count, -3] = scores[:count, -2]  # the second and the third
        scores[:, 1] = scores[:, 0]  # far from the list
        facts = Facts(SimpleNamespace(test=SimpleNamespace(side=side)),
                      before=Measured({}, statistics(scores, side), torch.zeros(20)))  # fmt: skip
        finding = DIAGNOSTICS["ties"](facts)
        assert (finding.measured, finding.severity) == (count / 20, severity)


def test_a_training_that_still_falls_is_warned_of(run):
    run = replace(run, losses=run.losses[:3])  # the same adapter, as if stopped at the third epoch
    summary = fudlr.debias(run, **QUICK).summary
    assert found(summary, "training")["severity"] == "warn"
    assert any("has not converged" in said for said in summary["warnings"])


def test_small_groups_are_warned_of_and_tiny_ones_refused(run):
    valid = run.split.valid
    group = run.interactions.users["gender"].gather(valid.user).to_numpy()
    of_b = (group == "B").cumsum() * (group == "B")
    few, tiny = (changed(run, valid=valid.take(np.flatnonzero(of_b <= size))) for size in (12, 3))
    summary = fudlr.debias(few, objective="hellinger", **QUICK).summary
    assert found(summary, "small_groups")["severity"] == "warn"
    assert found(summary, "small_groups")["measured"] == 12
    with pytest.raises(RefusedError, match=r"'B', has 3 of"):
        fudlr.debias(tiny, objective="hellinger", **QUICK)


def test_a_metric_without_gradient_is_refused(run):
    equal = changed(run, popularity=run.split.popularity * 0 + 7)
    with pytest.raises(RefusedError, match="arp has no gradient"):
        fudlr.debias(equal, objective="arp", lambda_acc=0.0, **QUICK)
    summary = fudlr.debias(equal, objective="hellinger", also=("arp",), **QUICK).summary
    assert found(summary, "no_gradient")["severity"] == "warn"


def test_a_gap_of_chance_leaves_nothing_to_remove(run, tmp_path):
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(2, (run.interactions.n_users,), generator=generator)
    result = fudlr.debias(grouped(run, codes.numpy().astype(str)), objective="dp", **QUICK)
    assert found(result.summary, "chance")["severity"] == "keep"
    assert int(result.mask.sum()) == 0
    assert torch.equal(result.theta, run.theta)
    assert any("Nothing here to remove" in said for said in result.summary["warnings"])
    swept = sweep_run(grouped(run, codes.numpy().astype(str)), Grid(), result.config)
    assert any("Nothing here to remove" in said for said in swept["warnings"])
    write_result(tmp_path / "r", result)
    assert "Nothing here to remove" in (tmp_path / "r" / "report.html").read_text()


def test_influence_that_is_noise_leaves_nothing_to_remove(run):
    """Random answers in place of the users' own: what ranks them higher is noise."""
    valid = run.split.valid
    generator = torch.Generator().manual_seed(0)
    seen = torch.from_numpy(valid.seen())
    drawn = torch.rand(seen.shape, generator=generator).masked_fill(seen, -1).argmax(1)

    class Random(type(valid)):
        target = property(lambda _self: drawn_targets)

    drawn_targets = drawn.numpy()
    noisy = Random(valid.interactions, valid.position)
    result = fudlr.debias(changed(run, valid=noisy), objective="ndcg", lambda_acc=0.0, **QUICK)
    assert found(result.summary, "noise")["severity"] == "keep"
    assert int(result.mask.sum()) == 0


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


def test_a_recommender_no_better_than_most_popular_is_warned_of(run, monkeypatch):
    """Of 200 users: hits of its own for a tenth of them more, and for none more."""
    side = make_prompts(run.split, run.split.test, run.config.data).side
    popular = side.popularity.expand(len(side.target), -1).clone()
    plan = SimpleNamespace(test=SimpleNamespace(side=side), config=run.config.debias)
    better = popular.clone()
    better[torch.arange(len(better)), side.target] = 1e6  # the target first for everyone
    for scores, severity in ((popular, "warn"), (better, "passed"), (better.flip(0), "warn")):
        facts = Facts(plan, before=measured_of(scores, side))
        assert DIAGNOSTICS["most_popular"](facts).severity == severity


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

    @classmethod
    def make(cls, parts):
        return cls()


def test_a_destructive_update_is_refused_unless_forced(run, run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(CURVATURES, "overconfident", Overconfident)
    options = {"curvature": "overconfident", "damping": 1.0, "lambda_acc": 0.0, **QUICK}
    with pytest.raises(RefusedError, match="diagnostic shift"):
        fudlr.debias(run, **options)
    settings = ["--set", "debias.curvature=overconfident", "--set", "debias.lambda_acc=0"]
    arguments = ["debias", str(run_folder), "--out", str(tmp_path / "r"), *settings, "--damping=1"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, RefusedError)
    assert not (tmp_path / "r").exists()
    forced = CliRunner().invoke(app, [*arguments, "--quick", "--force"], catch_exceptions=False)
    assert forced.exit_code == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    severities = {each["name"]: each["severity"] for each in summary["diagnostics"]}
    assert severities["shift"] == severities["loss"] == "refuse"
    assert severities["ranking"] in ("warn", "refuse")
    assert any(said.startswith("Forced: The update shifts") for said in summary["warnings"])


def test_severities_are_ordered():
    ranks = [each.rank for each in Severity]
    assert ranks == sorted(ranks)
    assert look({}, None) == []
