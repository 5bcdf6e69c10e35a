"""Up to 10⁷ interactions: how time and memory grow, and the share of retraining.

The interactions are a stream (`stream`), cut at four sizes. A tiny recommender is trained on the
beginning of it, once. Then, at each size, in processes of their own so that peak memory is theirs:

    record      every training sample's sketched gradient, block by block, into a store
    request     metric gradients, conjugate gradients over the store, scores, mask, update
    training    CPU seconds of an epoch for a sample, on three slices of the stream

Retraining is not run to its end at any size: it is extrapolated,

    retraining = epochs · samples · (median over the slices of training's CPU seconds a sample)

and is named so wherever it stands. The adapter was not trained on the whole stream: what is
measured is cost. Drawing the data is timed apart, and is no part of any cost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fudlr.common.processes import in_own_process
from fudlr.experiments import scale_stages as stages
from fudlr.experiments.base import Cells, Experiment, Options, Outcome, Record
from fudlr.experiments.recbole_files import write_recbole
from fudlr.experiments.runner import trained
from fudlr.experiments.stream import Stream
from fudlr.run import Run

SIZES = (10**4, 10**5, 10**6, 10**7)
TRAINED = 2
"""Blocks of the stream that the adapter is trained on."""
SLOPE = 0.1
"""How far from 1 the slope of log time over log size may be; what a request costs at any size makes
it smaller at the first sizes."""
MEMORY = 2.0
"""Times the peak memory at the smallest size: what a thousand times the data may take."""
GROWTH = 0.02
"""Largest slope of log share over log size that counts as none: 5% for ten times the data."""


def _stream(options: Options, seed: int) -> tuple[Stream, tuple[int, ...]]:
    """The stream, and where it is cut."""
    if options.small:
        stream = Stream(seed, n_items=120, block_users=20)
        return stream, (stream.block_size, 3 * stream.block_size)
    return Stream(seed), SIZES


def _cells(options: Options) -> Mapping[str, Callable[[], Record]]:
    return {
        f"{size} interactions, seed {seed}": partial(_of_size, options, seed, size)
        for seed in options.seeds
        for size in _stream(options, seed)[1]
    }


def _of_size(options: Options, seed: int, size: int) -> Record:
    stream, _ = _stream(options, seed)
    run = _model(options, stream)
    work = options.out / "stores" / f"{size}-{seed}"
    shutil.rmtree(work, ignore_errors=True)  # of an interrupted cell: half a store's time is none
    work.mkdir(parents=True)
    measured = _here if options.small else in_own_process
    folder = run.folder
    assert folder is not None
    try:
        recorded = measured(stages.record, folder, stream, size, work)
        asked = measured(stages.request, folder, stream, size, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    training = measured(stages.training, folder, stream, size)
    epochs = run.config.train.epochs
    retraining = epochs * recorded["samples"] * training["median"]
    record_seconds = recorded["cpu_seconds"]["record"]
    request_seconds = sum(s for name, s in asked["cpu_seconds"].items() if name != "draw")
    return {
        "interactions": size,
        "seed": seed,
        "record": recorded,
        "request": asked,
        "training": training,
        "epochs": epochs,
        "record_seconds": record_seconds,
        "request_seconds": request_seconds,
        "retraining_seconds_extrapolated": retraining,
        "share": (record_seconds + request_seconds) / retraining,
        "request_share": request_seconds / retraining,
        "peak_bytes": max(recorded["peak_bytes"], asked["peak_bytes"]),
    }


def _model(options: Options, stream: Stream) -> Run:
    """The run whose model all sizes use, trained on the stream's beginning."""
    source = options.out / "data" / f"{stream.n_items}-{stream.block_users}-{stream.seed}"
    if not (source / "stream.inter").is_file():
        write_recbole(source, "stream", stream.first(TRAINED))
    settings = {"data.source": str(source), "data.name": "stream", "seed": stream.seed}
    return trained(options, settings, f"seed-{stream.seed}")


def _here(function: Callable[..., Record], *args: Any) -> Record:
    return function(*args)


def _by_seed(cells: Cells) -> list[list[Record]]:
    """The cells of each seed, by size."""
    seeds = sorted({cell["seed"] for cell in cells.values()})
    found = [[cell for cell in cells.values() if cell["seed"] == seed] for seed in seeds]
    return [sorted(line, key=lambda cell: int(cell["interactions"])) for line in found]


def _trend(line: Sequence[Record], values: Sequence[float]) -> float:
    """Slope of the least squares line of log values over log size."""
    sizes = np.log([cell["interactions"] for cell in line])
    return float(np.polyfit(sizes, np.log(values), 1)[0])


def _cost(cell: Record) -> float:
    return float(cell["record_seconds"] + cell["request_seconds"])


def _slopes(line: Sequence[Record]) -> list[float]:
    """Of log CPU time over log size: of the least squares line, then from each size to the next."""
    sizes = np.log([cell["interactions"] for cell in line])
    costs = np.log([_cost(cell) for cell in line])
    steps = np.diff(costs) / np.diff(sizes)
    return [_trend(line, [_cost(cell) for cell in line]), *steps.tolist()]


def _outcomes(cells: Cells) -> list[Outcome]:
    lines = _by_seed(cells)
    slopes = [_slopes(line) for line in lines]
    growth = [line[-1]["peak_bytes"] / line[0]["peak_bytes"] for line in lines]
    shares = [[cell["share"] for cell in line] for line in lines]
    whole = [cell["request"]["rows"] == cell["record"]["samples"] for cell in cells.values()]
    fall = [value < 0 for cell in cells.values() for value in cell["request"]["measured"].values()]
    ends = lines[0][0]["interactions"], lines[0][-1]["interactions"]
    return [
        Outcome(
            "time is linear: the slope of log CPU time (recording and request) over log size is at "
            f"most {1 + SLOPE:g} from any size to the next, and at least {1 - SLOPE:g} between the "
            "last two",
            all(max(steps) <= 1 + SLOPE and steps[-1] >= 1 - SLOPE for _, *steps in slopes),
            "; ".join(
                " ".join(f"{step:.3f}" for step in steps)
                + f", least squares line {whole:.3f}, microseconds a sample "
                + " ".join(f"{1e6 * _cost(c) / c['record']['samples']:.0f}" for c in line)
                for (whole, *steps), line in zip(slopes, lines, strict=True)
            ),
        ),
        Outcome(
            f"memory is flat: the peak at {ends[1]} is at most {MEMORY:g} times that at {ends[0]}",
            all(each <= MEMORY for each in growth),
            "; ".join(
                f"{each:.2f} times: " + ", ".join(f"{c['peak_bytes'] / 1e6:.0f} MB" for c in line)
                for each, line in zip(growth, lines, strict=True)
            ),
        ),
        Outcome(
            "the share of retraining (extrapolated from slices) does not grow: the slope of its "
            f"logarithm over log size is at most {GROWTH:g}",
            all(_trend(*pair) <= GROWTH for pair in zip(lines, shares, strict=True)),
            "; ".join(
                " ".join(f"{each:.1%}" for each in line) + f", slope {_trend(cells_, line):+.3f}"
                for cells_, line in zip(lines, shares, strict=True)
            ),
        ),
        Outcome(
            "every sample has a row, and the update lowers the metric that was asked for",
            all(whole) and all(fall),
            f"{sum(whole)} of {len(whole)} stores are whole, {sum(fall)} of {len(fall)} fell",
        ),
    ]


def _rows(cells: Cells) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        (
            "interactions",
            "samples",
            "store MB",
            "record s",
            "request s",
            "retraining s, extrapolated",
            "share",
            "request alone",
            "peak MB: record",
            "request",
        )
    ]
    for line in _by_seed(cells):
        for cell in line:
            rows.append(
                (
                    f"{cell['interactions']:,}",
                    f"{cell['record']['samples']:,}",
                    f"{cell['request']['bytes'] / 1e6:.1f}",
                    f"{cell['record_seconds']:.2f}",
                    f"{cell['request_seconds']:.2f}",
                    f"{cell['retraining_seconds_extrapolated']:.1f}",
                    f"{cell['share']:.1%}",
                    f"{cell['request_share']:.2%}",
                    f"{cell['record']['peak_bytes'] / 1e6:.0f}",
                    f"{cell['request']['peak_bytes'] / 1e6:.0f}",
                )
            )
    return rows


def _plot(cells: Cells, axes: Axes) -> None:
    for line in _by_seed(cells)[:1]:
        sizes = [cell["interactions"] for cell in line]
        for key, label in (
            ("record_seconds", "recording"),
            ("request_seconds", "request"),
            ("retraining_seconds_extrapolated", "retraining, extrapolated"),
        ):
            dashed = "--" if "retraining" in key else "-"
            axes.loglog(sizes, [cell[key] for cell in line], f"o{dashed}", label=label)
    axes.set_xlabel("interactions")
    axes.set_ylabel("CPU seconds")
    axes.legend()


EXPERIMENT = Experiment(
    "scale",
    "Up to 10⁷ interactions: how do time, memory and the share of retraining grow?",
    _cells,
    _outcomes,
    _rows,
    _plot,
    defaults={
        "data.window": 8,
        "model.hidden": 32,
        "model.layers": 1,
        "model.heads": 2,
        "model.kv_heads": 2,
        "model.intermediate": 32,
        "lora.rank": 2,
        "lora.targets": ("q_proj", "v_proj", "o_proj", "down_proj"),
        "train.batch": 1024,
        "record.ride": True,
        "record.dims": 4,
        "record.batch": 1024,
        "record.audit": 0,
        "debias.damping": 0.03,
        "debias.lambda_acc": 1.0,
    },
)
