"""Every option under every command: it changes the outcome, or it is refused by name."""

import json

import fudlr
import pytest
import torch
from fudlr import load_run, train_run
from fudlr.common.errors import FudlrError, UsageError
from fudlr.config import DebiasConfig, merge
from fudlr.diagnostics import BEFORE, Finding, Severity
from fudlr.groups import debias_groups, sets_of_column
from fudlr.groups.outputs import grouped_record
from fudlr.pipeline.plan import prepare, with_options
from fudlr.sweep import Grid, sweep_run

SMALL = {
    "data.train_samples": 200, "data.prompt_users": 60, "model.layers": 1,
    "model.pretrain_epochs": 5, "train.epochs": 6, "train.batch": 128,
    "train.learning_rate": 0.005, "debias.damping": None,
}  # fmt: skip
BASE = {"rows": "memory", "force": True, "lambda_acc": 1.0}
CHANGED = {
    "objective": "gini",
    "budget": 0.05,
    "lambda_fair": 3.0,
    "lambda_acc": 0.25,
    "lambda_spa": 3.0,
    "also": ("gini",),
    "mask": "descent",
    "update": "unrolled",
    "newton_steps": 1,
    "curvature": "ekfac",
    "damping": 1.0,
    "solver": "direct",
    "rows": "stream",
    "store": "no/such/store",
    "candidates": 0.5,
    "force": False,
    "batch": 7,
}
LEFT_OUT = {"seconds", "cpu_seconds", "cost", "config", "versions", "device"}


@pytest.fixture(scope="module")
def run(once, tiny_config):
    return load_run(once("options", lambda out: train_run(merge(tiny_config, SMALL), out)))


def debias(run, config):
    result = fudlr.debias(run, config, curve=(), heldout=False)
    return {**result.summary, "mask": result.mask.tolist()}


def sweep(run, config):
    grid = Grid.around(config, lambda_acc=(config.lambda_acc,), budget=(config.budget,))
    return sweep_run(run, grid, config, measure=True)


def grouped(run, config):
    return grouped_record(debias_groups(run, sets_of_column(run.interactions, "gender"), config))


COMMANDS = {"debias": debias, "sweep": sweep, "grouped": grouped}


def outcome(run, command, monkeypatch, **options):
    """What the command gives, and in batches of which size; or what it says in refusing."""
    config = with_options(DebiasConfig(), {**BASE, **options})
    sizes = set()
    batches = run.recommender.batches

    def noted(samples, size, **given):
        sizes.add(min(size, len(samples)))
        return batches(samples, size, **given)

    with monkeypatch.context() as patch:
        patch.setattr(run.recommender, "batches", noted)
        try:
            found = COMMANDS[command](run, config)
        except FudlrError as error:
            return str(error)
    kept = {name: value for name, value in found.items() if name not in LEFT_OUT}
    return [rounded(json.loads(json.dumps(kept))), sorted(sizes)]


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def usual(run):
    with pytest.MonkeyPatch.context() as patch:
        return {name: outcome(run, name, patch) for name in COMMANDS}


def refuse(facts):
    return Finding("sample", Severity.REFUSE, 1.0, 0.0, "it was asked for", "a test", "none")


def test_the_table_has_every_option():
    assert set(CHANGED) == set(DebiasConfig.model_fields)
    assert len(CHANGED) <= 20
    for name, value in CHANGED.items():
        assert BASE.get(name, DebiasConfig.model_fields[name].default) != value


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_options_give_the_same_outcome(run, usual, command, monkeypatch):
    assert not isinstance(usual[command], str), usual[command]
    assert outcome(run, command, monkeypatch) == usual[command]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", CHANGED)
def test_an_option_acts_or_is_refused(run, usual, command, option, monkeypatch):
    if option == "force":
        monkeypatch.setitem(BEFORE, "sample", refuse)
    found = outcome(run, command, monkeypatch, **{option: CHANGED[option]})
    if isinstance(found, str):
        assert option == "force" or f"debias.{option}" in found or f"{option} " in found, found
        assert torch.isfinite(run.theta).all()
    else:
        assert found != usual[command]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"lambda_fair": 0.0, "lambda_acc": 0.0}, "both 0"),
        ({"curvature": "ekfac", "newton_steps": 1}, "entries between layers"),
        ({"curvature": "ggn", "solver": "direct"}, "no closed form"),
        ({"candidates": 0.5, "newton_steps": 1}, "those of all samples"),
        ({"rows": "store", "curvature": "ggn"}, "curvature ggn"),
        ({"rows": "store", "newton_steps": 1}, "Newton steps"),
        ({"rows": "auto", "store": "x", "candidates": 0.5}, "candidates"),
        ({"rows": "auto", "update": "unrolled", "damping": 0.1}, "debias.damping"),
        ({"update": "unrolled"}, "debias.rows=memory"),
        ({"rows": "auto", "update": "unrolled", "store": "nowhere"}, "there is no store"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(run, options, why):
    with pytest.raises(UsageError, match=why):
        prepare(run, with_options(DebiasConfig(), {**BASE, **options}))
