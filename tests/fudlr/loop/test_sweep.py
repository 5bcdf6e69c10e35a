"""Sweeps: a point is what `debias` gives, signs, resuming, the sweet spot, lists that are wrong."""

import json
from itertools import pairwise

import fudlr
import polars as pl
import pytest
from fudlr import load_run
from fudlr.cli import app
from fudlr.common.errors import DataError, UsageError
from fudlr.config import DebiasConfig, merge
from fudlr.gradients.store import StoreError
from fudlr.sweep import Grid, points, print_sweep, rank, sweep_run
from fudlr.sweep.grid import parse_list
from typer.testing import CliRunner

GRID = Grid(lambda_acc=(0.0, 0.5, 1.0, 2.0), budget=(0.05, 0.1))
SMALL = Grid(lambda_acc=(0.0, 1.0), budget=(0.05, 0.1))


@pytest.fixture(scope="module")
def swept(run_folder):
    return sweep_run(load_run(run_folder), GRID, measure=True)


def column(record, budget, *names):
    """A figure of the points of one budget, in the order of λ_acc."""
    found = [point for point in record["points"] if point["budget"] == budget]
    for name in names:
        found = [point[name] for point in found]
    return found


@pytest.mark.parametrize("budget", GRID.budget)
def test_more_weight_on_the_loss_never_raises_it(swept, budget):
    losses = column(swept, budget, "predicted", "change", "val_loss")
    assert all(later <= earlier + 1e-7 for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0] - 1e-4
    unfair = column(swept, budget, "predicted", "objective")
    assert all(later >= earlier - 1e-7 for earlier, later in pairwise(unfair))
    assert unfair[0] < -0.005


def test_a_larger_budget_is_predicted_to_change_more(swept):
    small, large = (column(swept, b, "predicted", "objective") for b in GRID.budget)
    assert all(b < a < 0 for a, b in zip(small[:2], large[:2], strict=True))


def test_measured_changes_have_the_predicted_sign_and_size(swept):
    for point in swept["points"][:2]:
        assert point["measured"]["objective"] < 0
        assert point["measured"]["objective"] == pytest.approx(
            point["predicted"]["objective"], rel=0.6
        )


def test_a_point_is_what_debias_gives(run_folder, swept):
    options = {"lambda_acc": 0.5, "budget": 0.1, "curve": (), "heldout": False}
    single = fudlr.debias(load_run(run_folder), also=("val_loss",), **options)
    point = next(p for p in swept["points"] if p["lambda_acc"] == 0.5 and p["budget"] == 0.1)
    assert point["removed"] == int(single.mask.sum())
    for name, change in single.answer.scored.predicted(single.mask).items():
        assert point["predicted"]["change"][name] == pytest.approx(change, rel=1e-3, abs=1e-7)
    assert {"arp", "ndcg@5", "test_loss"} <= set(point["measured"]["test"])
    for name, value in point["measured"]["test"].items():
        assert value == pytest.approx(single.after.metrics[name], rel=1e-3, abs=1e-5), name
    assert swept["before"]["test"]["arp"] == pytest.approx(single.before.metrics["arp"])


def test_a_store_answers_all_points_of_a_sweep(run_folder):
    run, grid = load_run(run_folder), Grid(lambda_acc=(0.0, 1.0), budget=(0.1,))
    mine, other = (
        sweep_run(run, grid, merge(run.config, {"debias.rows": rows}).debias, measure=True)
        for rows in ("store", "memory")
    )
    assert [point["rows"] for point in mine["points"]] == ["store"] * 2
    assert [point["rows"] for point in other["points"]] == ["memory"] * 2
    for sketched, whole in zip(mine["points"], other["points"], strict=True):
        # The update is kept to the sketches' span: 1.36 of the whole method's change was measured.
        for kind, off in (("predicted", 0.25), ("measured", 0.6)):
            change = sketched[kind]["objective"]
            assert change < 0
            assert change == pytest.approx(whole[kind]["objective"], rel=off), kind
    single = fudlr.debias(run, rows="store", lambda_acc=1.0, curve=(), heldout=False)
    point = mine["points"][1]
    assert point["removed"] == int(single.mask.sum())
    assert point["measured"]["test"]["arp"] == pytest.approx(single.after.metrics["arp"], rel=1e-4)
    foreign = load_run(run_folder, run_folder / "start")
    with pytest.raises(StoreError, match="another adapter"):
        sweep_run(foreign, grid, merge(run.config, {"debias.rows": "store"}).debias)


def test_an_interrupted_sweep_goes_on_and_finished_points_stay(run_folder, tmp_path, monkeypatch):
    measured = []
    real = points._Sweep.measure

    def at_most_two(self, point):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(point)
        return real(self, point)

    monkeypatch.setattr(points._Sweep, "measure", at_most_two)
    with pytest.raises(KeyboardInterrupt):
        sweep_run(load_run(run_folder), SMALL, out=tmp_path, measure=True)
    first = list(measured)
    measured.clear()
    found = sweep_run(load_run(run_folder), SMALL, out=tmp_path, measure=True)
    assert len(measured) == 2
    assert not set(first) & set(measured)
    monkeypatch.setattr(points._Sweep, "measure", real)
    undisturbed = sweep_run(load_run(run_folder), SMALL, measure=True)
    for mine, other in zip(found["points"], undisturbed["points"], strict=True):
        assert mine["mask"] == other["mask"]
        assert mine["measured"]["test"]["arp"] == pytest.approx(
            other["measured"]["test"]["arp"], rel=1e-5
        )

    def never(*given):
        raise AssertionError("nothing was left to compute")

    monkeypatch.setattr(points, "solve", never)
    again = sweep_run(load_run(run_folder), SMALL, out=tmp_path, measure=True)
    assert again["points"] == found["points"]
    other = merge(load_run(run_folder).config, {"debias.objective": "gini"}).debias
    with pytest.raises(AssertionError, match="nothing was left"):  # another objective is other work
        sweep_run(load_run(run_folder), SMALL, other, out=tmp_path)


def test_a_damaged_point_is_named(run_folder, tmp_path):
    sweep_run(load_run(run_folder), SMALL, out=tmp_path)
    broken = sorted((tmp_path / "points").iterdir())[0]
    broken.write_text("{")
    with pytest.raises(DataError, match=broken.name):
        sweep_run(load_run(run_folder), SMALL, out=tmp_path)


def test_candidates_alone_can_be_removed_in_a_sweep(run_folder):
    run = load_run(run_folder)
    options = {"debias.candidates": 0.2}
    found = sweep_run(run, Grid(budget=(0.5,)), merge(run.config, options).debias)
    n = len(run.split.train)
    assert all(0 < point["removed"] <= -(-n // 5) for point in found["points"])


def test_the_command_writes_table_plot_and_retrained_figures(run_folder, tmp_path):
    arguments = ["sweep", str(run_folder), "--out", str(tmp_path), "--objective", "arp"]
    arguments += ["--lambda-acc", "0,1", "--budget", "0.1", "--measure", "--retrain", "1"]
    result = CliRunner().invoke(app, [*arguments, "--processes", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "★" in result.stdout
    record = json.loads((tmp_path / "sweep.json").read_text())
    table = pl.read_parquet(tmp_path / "sweep.parquet")
    assert table["sweet_spot"].to_list() == [i == record["sweet_spot"] for i in range(2)]
    assert table["measured.test.arp"].null_count() == 0
    assert table["retrained.objective"].null_count() == 1
    spot = record["points"][record["sweet_spot"]]
    assert spot["retrained"]["objective"] < 0
    assert "<svg" in (tmp_path / "sweep.svg").read_text()


def made_up(removed, objective, rise, measured=None):
    figures = {"objective": objective, "loss_rise": rise}
    return {"removed": removed, "predicted": figures, "measured": measured}


def test_the_sweet_spot_is_the_lowest_objective_within_the_loss_allowed():
    records = [made_up(5, -0.1, 0.01), made_up(9, -0.3, 0.03), made_up(7, -0.2, 0.02)]
    assert rank(records, 0.02) == [2, 0, 1]
    assert rank(records, 0.05) == [1, 2, 0]
    assert rank(records, 0.001) == [0, 2, 1]  # none keeps to it: by how little the loss rises
    assert rank([made_up(5, -0.1, 0.0), made_up(4, -0.1, 0.0)], 0.02) == [1, 0]
    better = {"objective": -0.9, "loss_rise": 0.0}
    assert rank([records[0], {**records[2], "measured": better}], 0.02)[0] == 1
    both = [{**records[0], "measured": better}, {**records[2], "measured": records[0]["predicted"]}]
    assert rank(both, 0.02) == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("lambda_acc", "0,x", "'x' is not a number"),
        ("lambda_acc", "", "'' is not a number"),
        ("lambda_acc", "-1", "not negative"),
        ("lambda_fair", "nan", "not negative"),
        ("lambda_spa", "1,inf", "not negative"),
        ("budget", "0,0.1", "above 0"),
        ("budget", "0.1,1.5", "at most 1"),
        ("budget", "0.1,0.1", "twice"),
        ("lambda_fair", "0,1", "all samples score the same"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(name, text, why):
    with pytest.raises(UsageError, match=why):
        Grid(**{name: parse_list(name, text)})


def test_the_grid_goes_around_the_configured_values():
    config = DebiasConfig(lambda_fair=2, lambda_acc=3, budget=0.2)
    grid = Grid.around(config, lambda_spa=(0.0, 1.0))
    assert grid.lambda_fair == (2,)
    assert grid.lambda_acc == (0, 1.5, 3, 6)
    assert grid.lambda_spa == (0, 1)
    assert grid.budget == (0.04, 0.1, 0.2)
    assert Grid.around(DebiasConfig()) == Grid()
    assert 0 not in Grid.around(DebiasConfig(lambda_fair=0)).lambda_acc


def test_changes_are_named_as_the_surrogate_s(run_folder, capsys):
    print_sweep(sweep_run(load_run(run_folder), SMALL))
    assert "surrogate arp_soft on the validation prompts" in " ".join(
        capsys.readouterr().out.split()
    )
