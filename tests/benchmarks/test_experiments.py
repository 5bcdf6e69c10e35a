"""The paper's experiments: finished cells stay, and made-up data are as claimed."""

import numpy as np
import pytest
from experiments.common import Experiment, Options, Outcome, run_experiment
from experiments.planted_data import EARLY, LATE, first_share, planted_data
from experiments.stream import LENGTH, Stream
from fudlr import RunConfig
from fudlr.config import merge


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


def test_planted_samples_are_counted_with_fair_ties():
    truth = np.array([True, True, False, False, False])
    assert first_share(np.array([0, 1, 2, 3, 4]), truth) == 1
    assert first_share(np.array([4, 3, 2, 1, 0]), truth) == 0
    assert first_share(np.zeros(5), truth) == pytest.approx(0.4)
    assert first_share(np.array([0, 1, 1, 1, 1]), truth) == pytest.approx((1 + 0.25) / 2)
