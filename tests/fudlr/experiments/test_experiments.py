"""Experiments: the table, resuming, damage, and that planted data hold what they claim."""

import json

import numpy as np
import polars as pl
import pytest
from fudlr import RunConfig
from fudlr.cli import app
from fudlr.common.errors import DataError, UsageError
from fudlr.config import merge
from fudlr.experiments import EXPERIMENTS, Experiment, Options, Outcome, run_experiment
from fudlr.experiments.planted_data import EARLY, LATE, planted_data
from typer.testing import CliRunner

TINY = {
    "data.source": "synthetic",
    "data.k": 5,
    "model.hidden": 16,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.layers": 1,
    "model.intermediate": 16,
    "model.pretrain_epochs": 1,
    "lora.rank": 1,
    "train.epochs": 2,
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("FUDLR_QUIET", "1")


def made_up(done):
    """An experiment of two cells that says what it did."""

    def work(name):
        done.append(name)
        return {"value": len(done)}

    return Experiment(
        "made_up",
        "Does it resume?",
        lambda options: {name: lambda name=name: work(name) for name in ("one", "two")},
        lambda cells: [Outcome("both are there", len(cells) == 2, str(len(cells)))],
        lambda cells: [("cell", "value"), *((n, str(c["value"])) for n, c in cells.items())],
        lambda cells, axes: axes.plot([cell["value"] for cell in cells.values()]),
    )


def test_finished_cells_are_not_done_again(tmp_path):
    done = []
    options = Options(RunConfig(), tmp_path)
    first = run_experiment(made_up(done), options)
    assert done == ["one", "two"]
    assert first["outcomes"][0]["held"]
    next((tmp_path / "cells").glob("made_up-two-*")).unlink()
    again = run_experiment(made_up(done), options)
    assert done == ["one", "two", "two"]
    assert again["cells"]["one"] == first["cells"]["one"]
    run_experiment(made_up(done), Options(merge(RunConfig(), {"train.epochs": 3}), tmp_path))
    assert done[3:] == ["one", "two"], "cells of other options are others"
    assert json.loads((tmp_path / "made_up.json").read_text())["experiment"] == "made_up"
    assert "<svg" in (tmp_path / "made_up.svg").read_text()


def test_a_damaged_cell_is_named(tmp_path):
    options = Options(RunConfig(), tmp_path)
    run_experiment(made_up([]), options)
    cell = next((tmp_path / "cells").glob("made_up-one-*"))
    cell.write_text("{")
    with pytest.raises(DataError, match=cell.name):
        run_experiment(made_up([]), options)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_that_are_no_list_are_refused(tmp_path, seeds):
    with pytest.raises(UsageError, match="seeds"):
        run_experiment(made_up([]), Options(RunConfig(), tmp_path, seeds=seeds))


def test_an_unknown_name_is_refused_with_the_known(tmp_path):
    result = CliRunner().invoke(app, ["experiment", "nothing", "--out", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
    assert all(name in str(result.exception) for name in EXPERIMENTS)


def test_planted_pairs_are_where_the_docstring_says():
    planted = planted_data(200, 0.1, seed=3)
    data, length = planted.interactions, EARLY + LATE
    item = data.item.reshape(-1, length)
    genre = data.items["genres"].list.first().to_numpy()
    for kind, pairs in planted.pairs.items():
        assert len(pairs) > 20
        for user, name in pairs:
            u, i = int(user[1:]), int(name[1:])
            assert EARLY <= np.flatnonzero(item[u] == i)[0] < length - 2
            if kind == "attribute":
                assert genre[i] == ("p" if data.users["gender"][u] == "A" else "q")
    late = item[:, EARLY:]
    odd = np.isin(genre[late], ["p", "q"])
    assert odd.sum() == len(planted.pairs["attribute"]), "nothing else of these genres is late"
    assert all(len(set(row)) == length for row in item), "no item twice"


def test_half_of_the_popular_kind_alone_is_popular():
    planted = planted_data(600, 0.08)
    counts = np.bincount(planted.interactions.item)
    popularity, attribute = (
        np.median([counts[int(name[1:])] for _, name in planted.pairs[kind]])
        for kind in ("popularity", "attribute")
    )
    assert popularity > 3 * attribute
    assert attribute < np.median(counts[planted.interactions.item])


def test_lambdas_on_a_tiny_run(tmp_path):
    few = {"data.train_samples": 400, "data.prompt_users": 100}
    options = Options(merge(RunConfig(), TINY | few), tmp_path, small=True)
    record = run_experiment(EXPERIMENTS["lambdas"], options)
    spa = record["cells"]["lambda_spa, seed 0"]
    removed = [point["removed"] for point in spa["points"]]
    assert removed[0] > removed[-1]
    assert removed == sorted(removed, reverse=True)
    assert len(record["table"]) == 1 + sum(len(c["points"]) for c in record["cells"].values())


def test_planted_on_a_tiny_run(tmp_path):
    tiny = {name: TINY[name] for name in TINY if name.startswith(("model", "train"))}
    config = merge(RunConfig(), {**EXPERIMENTS["planted"].defaults, **tiny})
    record = run_experiment(EXPERIMENTS["planted"], Options(config, tmp_path, small=True))
    cell = record["cells"]["seed 0"]
    truth = pl.read_csv(next((tmp_path / "data").rglob("planted.csv")))
    assert cell["planted"] == len(truth) == sum(k["planted"] for k in cell["kinds"].values())
    share = sum(k["among_first"] * k["planted"] for k in cell["kinds"].values()) / cell["planted"]
    assert share == pytest.approx(cell["first"], abs=1.5 / cell["planted"])
