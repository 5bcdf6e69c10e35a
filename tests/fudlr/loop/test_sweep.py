"""Sweeps: a point is what `debias` gives, signs, resuming, the sweet spot, lists that are wrong."""

import json

import fudlr
import polars as pl
import pytest
from fudlr import load_run
from fudlr.cli import app
from fudlr.common.errors import DataError, UsageError
from fudlr.config import DebiasConfig, merge
from fudlr.sweep import Grid, points, rank, sweep_run
from fudlr.sweep.grid import parse_list
from typer.testing import CliRunner

GRID = Grid(lambda_acc=(0.0, 1.0), budget=(0.05, 0.1))


@pytest.fixture(scope="module")
def swept(run_folder):
    return sweep_run(load_run(run_folder), GRID, measure=True)


def test_the_signs_of_what_is_predicted_and_measured(swept):
    """More weight on the loss lowers its rise and the gain; a larger budget changes more."""
    points = {(p["lambda_acc"], p["budget"]): p for p in swept["points"]}
    gain = {key: point["predicted"]["objective"] for key, point in points.items()}
    for budget in GRID.budget:
        free, careful = (points[weight, budget] for weight in GRID.lambda_acc)
        losses = [p["predicted"]["change"]["val_loss"] for p in (free, careful)]
        assert losses[1] < losses[0] - 1e-4
        assert gain[0.0, budget] < gain[1.0, budget] < 0
        assert free["measured"]["objective"] == pytest.approx(gain[0.0, budget], rel=0.6)
    assert all(gain[weight, 0.1] < gain[weight, 0.05] for weight in GRID.lambda_acc)


def test_a_point_is_what_debias_gives(run_folder, swept):
    options = {"lambda_acc": 1.0, "budget": 0.1, "curve": (), "heldout": False}
    single = fudlr.debias(load_run(run_folder), also=("val_loss",), **options)
    point = next(p for p in swept["points"] if p["lambda_acc"] == 1.0 and p["budget"] == 0.1)
    assert point["removed"] == int(single.mask.sum())
    for name, change in single.answer.scored.predicted(single.mask).items():
        assert point["predicted"]["change"][name] == pytest.approx(change, rel=1e-3, abs=1e-7)
    assert {"arp", "ndcg@5", "test_loss"} <= set(point["measured"]["test"])
    for name, value in point["measured"]["test"].items():
        assert value == pytest.approx(single.after.metrics[name], rel=1e-3, abs=1e-5), name
    assert swept["before"]["test"]["arp"] == pytest.approx(single.before.metrics["arp"])


def test_an_interrupted_sweep_goes_on_and_finished_points_stay(
    run_folder, swept, tmp_path, monkeypatch
):
    measured = []
    real = points._Sweep.measure

    def at_most_two(self, point):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(point)
        return real(self, point)

    monkeypatch.setattr(points._Sweep, "measure", at_most_two)
    with pytest.raises(KeyboardInterrupt):
        sweep_run(load_run(run_folder), GRID, out=tmp_path, measure=True)
    first = list(measured)
    measured.clear()
    found = sweep_run(load_run(run_folder), GRID, out=tmp_path, measure=True)
    assert len(measured) == 2
    assert not set(first) & set(measured)
    for mine, other in zip(found["points"], swept["points"], strict=True):
        assert mine["mask"] == other["mask"]
        assert mine["measured"]["test"]["arp"] == pytest.approx(
            other["measured"]["test"]["arp"], rel=1e-5
        )

    def never(*given):
        raise AssertionError("nothing was left to compute")

    monkeypatch.setattr(points, "solve", never)
    again = sweep_run(load_run(run_folder), GRID, out=tmp_path, measure=True)
    assert again["points"] == found["points"]
    other = merge(load_run(run_folder).config, {"debias.objective": "gini"}).debias
    with pytest.raises(AssertionError, match="nothing was left"):  # another objective is other work
        sweep_run(load_run(run_folder), GRID, other, out=tmp_path)
    broken = sorted((tmp_path / "points").iterdir())[0]
    broken.write_text("{")
    with pytest.raises(DataError, match=broken.name):
        sweep_run(load_run(run_folder), GRID, out=tmp_path, measure=True)


def test_the_command_writes_table_plot_and_retrained_figures(run_folder, tmp_path):
    arguments = ["sweep", str(run_folder), "--out", str(tmp_path), "--objective", "arp"]
    arguments += ["--lambda-acc", "0,1", "--budget", "0.1", "--measure", "--retrain", "1"]
    result = CliRunner().invoke(app, [*arguments, "--processes", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "★" in result.stdout
    assert "surrogate arp_soft on the validation prompts" in " ".join(result.stdout.split())
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
        ("lambda_acc", "-1", "not negative"),
        ("lambda_fair", "nan", "not negative"),
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
