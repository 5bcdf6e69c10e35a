"""The paper's experiments, tiny: resuming, made-up data as claimed, every cell's figures."""

import json

import numpy as np
import polars as pl
import pytest
from experiment import main
from experiments import EXPERIMENTS
from experiments.common import Experiment, Options, Outcome, run_experiment
from experiments.planted_data import EARLY, LATE, planted_data
from experiments.stream import LENGTH, Stream
from fudlr import RunConfig
from fudlr.config import merge

TINY = {
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
SYNTHETIC = {"data.source": "synthetic", "data.train_samples": 150, "data.prompt_users": 100}


def run_tiny(name, tmp_path, **more):
    config = merge(RunConfig(), {**EXPERIMENTS[name].defaults, **TINY, **more})
    return run_experiment(name, EXPERIMENTS[name], Options(config, tmp_path, small=True))["cells"]


def test_finished_cells_are_not_done_again(tmp_path):
    done = []
    made_up = Experiment(
        "Does it resume?",
        lambda options: {n: lambda n=n: done.append(n) or {"value": n} for n in ("one", "two")},
        lambda cells: [Outcome("both are there", len(cells) == 2, str(len(cells)))],
        lambda cells: [{"cell": name} for name in cells],
    )
    options = Options(RunConfig(), tmp_path)
    first = run_experiment("made_up", made_up, options)
    next((tmp_path / "cells").glob("made_up-two-*")).unlink()
    assert run_experiment("made_up", made_up, options) == first
    assert done == ["one", "two", "two"]
    other = Options(merge(RunConfig(), {"train.epochs": 3}), tmp_path)
    run_experiment("made_up", made_up, other)
    assert done[3:] == ["one", "two"], "cells of other options are others"


def test_planted_pairs_are_where_the_docstring_says():
    planted = planted_data(600, 0.1, seed=3)
    data, length = planted.interactions, EARLY + LATE
    item = data.item.reshape(-1, length)
    genre = data.items["genres"].list.first().to_numpy()
    counts = np.bincount(data.item)
    median = {
        kind: np.median([counts[int(name[1:])] for _, name in pairs])
        for kind, pairs in planted.pairs.items()
    }
    assert median["popularity"] > 3 * median["attribute"]
    for kind, pairs in planted.pairs.items():
        for user, name in pairs:
            u, i = int(user[1:]), int(name[1:])
            assert EARLY <= np.flatnonzero(item[u] == i)[0] < length - 2
            if kind == "attribute":
                assert genre[i] == ("p" if data.users["gender"][u] == "A" else "q")
    odd = np.isin(genre[item[:, EARLY:]], ["p", "q"])
    assert odd.sum() == len(planted.pairs["attribute"]), "nothing else of these genres is late"


def test_a_shorter_stream_is_the_beginning_of_a_longer():
    stream = Stream(seed=3, n_items=200, block_users=30)
    size = stream.block_size
    short, long = list(stream.blocks(2 * size)), list(stream.blocks(4 * size))
    for a, b in zip(short, long, strict=False):
        np.testing.assert_array_equal(a.item, b.item)
    assert (short[0].item != short[1].item).any()
    assert all(len(set(row)) == LENGTH for row in stream.first(2).item.reshape(-1, LENGTH).tolist())
    spread, whole = stream.spread(5 * size, 31), stream.first(5)
    for place, name in enumerate(spread.users["user_id"].to_list()):
        u = int(name[1:])
        np.testing.assert_array_equal(
            spread.item[place * LENGTH : (place + 1) * LENGTH],
            whole.item[u * LENGTH : (u + 1) * LENGTH],
        )


def test_planted(tmp_path):
    (cell,) = run_tiny("planted", tmp_path).values()
    truth = pl.read_csv(next((tmp_path / "data").rglob("planted.csv")))
    assert cell["planted"] == len(truth) == sum(k["planted"] for k in cell["kinds"].values())
    share = sum(k["among_first"] * k["planted"] for k in cell["kinds"].values()) / cell["planted"]
    assert share == pytest.approx(cell["first"], abs=1.5 / cell["planted"])


def test_lambdas(tmp_path):
    cells = run_tiny("lambdas", tmp_path, **SYNTHETIC)
    removed = [point["removed"] for point in cells["lambda_spa, seed 0"]["points"]]
    assert removed[0] > removed[-1]
    assert removed == sorted(removed, reverse=True)


def test_scale(tmp_path):
    cells = run_tiny("scale", tmp_path, **{"train.batch": 256})
    assert [cell["interactions"] for cell in cells.values()] == [1000, 3000]
    for cell in cells.values():
        samples = 47 * cell["interactions"] // 50
        assert cell["record"]["samples"] == cell["request"]["rows"] == samples
        assert 0 < cell["request"]["removed"] <= 0.1 * samples
        assert cell["request"]["measured"]["arp"] < 0
        seconds = cell["training"]["median"] * samples * 2
        assert cell["retraining_seconds_extrapolated"] == pytest.approx(seconds)
    assert not list((tmp_path / "stores").iterdir()), "stores are deleted"


def test_not_differentiable(tmp_path):
    more = {**TINY, **SYNTHETIC, "data.k": 2}
    main([
        "not_differentiable", "--small", "--processes", "1", "--out", str(tmp_path),
        "--set", *(f"{name}={value}" for name, value in more.items()),
    ])  # fmt: skip
    cells = json.loads((tmp_path / "not_differentiable.json").read_text())["cells"]
    assert "no gradient" in cells["flat, seed 0"]["refused"]
    for name in ("coverage", "tail_share", "quota"):
        variance = cells[f"{name}, seed 0"]["variance"]
        assert variance["4"] > variance["8"] > 0
        assert variance["without control"] > variance["8"]
        assert variance["one number"] > 3 * variance["8"]
    # Both are of the same quantity here, so a sign that is turned shows.
    assert cells["tail_share, seed 0"]["cosine"] > 0.2
