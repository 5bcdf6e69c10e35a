"""λ_fair, λ_acc and λ_spa swept one at a time: what each buys, its cost, and the sweet spot.

    score_i = λ_fair · s_i / std(s) + λ_acc · a_i / std(a) + λ_spa < 0

λ_fair and λ_acc have effect through their ratio, and λ_spa beside both: λ_spa = 1 asks for samples
one standard deviation below 0. Each line is a `fudlr sweep` with the two other λ's held at the
configuration's values; the sweet spot is the sweep's own rule. Sensitivity is the largest change of
the objective between neighbouring values, and how many masks of the line differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from fudlr.data import fetch_ml100k
from fudlr.debias.summary import NEEDED
from fudlr.experiments.base import Cells, Experiment, Options, Outcome, Record
from fudlr.experiments.runner import trained
from fudlr.sweep import Grid, sweep_run

GRIDS: dict[str, tuple[float, ...]] = {
    "lambda_fair": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    "lambda_acc": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    "lambda_spa": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
}


def _cells(options: Options) -> Mapping[str, Callable[[], Record]]:
    return {
        f"{name}, seed {seed}": partial(_line, options, seed, name)
        for seed in options.seeds
        for name in GRIDS
    }


def _line(options: Options, seed: int, swept: str) -> Record:
    if options.config.data.source == "ml-100k":
        fetch_ml100k()
    run = trained(options, {"seed": seed}, f"seed-{seed}")
    config = run.config.debias
    values = GRIDS[swept][:: 2 if options.small else 1]
    if swept == "lambda_fair" and not config.lambda_acc:
        values = tuple(value for value in values if value)  # both 0 would score all the same
    lists: dict[str, tuple[float, ...]] = {
        name: (getattr(config, name),) for name in (*GRIDS, "budget")
    }
    found = sweep_run(
        run, Grid(**{**lists, swept: values}), config, options.out / "sweeps", measure=True
    )
    return {
        "swept": swept,
        "seed": seed,
        "objective": found["objective"],
        "rule": found["rule"],
        "sweet_spot": found["sweet_spot"],
        "points": [_point(point, swept) for point in found["points"]],
        "cpu_seconds": found["cpu_seconds"],
        "warnings": found["warnings"],
    }


def _point(point: Mapping[str, Any], swept: str) -> Record:
    return {
        "value": point[swept],
        "removed": point["removed"],
        "mask": point["mask"],
        "objective": point["measured"]["objective"],
        "loss_rise": point["measured"]["loss_rise"],
        "predicted": {name: point["predicted"][name] for name in ("objective", "loss_rise")},
        "test": point["measured"]["test"],
    }


def _of(cells: Cells, swept: str) -> list[Record]:
    return [cell for cell in cells.values() if cell["swept"] == swept]


def _falls(values: Sequence[float]) -> bool:
    return all(later <= earlier for earlier, later in pairwise(values))


def _outcomes(cells: Cells) -> list[Outcome]:
    acc = _of(cells, "lambda_acc")
    losses = [[point["loss_rise"] for point in line["points"]] for line in acc]
    spa = [[point["removed"] for point in line["points"]] for line in _of(cells, "lambda_spa")]
    inner = [0 < line["sweet_spot"] < len(line["points"]) - 1 for line in acc]
    return [
        Outcome(
            "more λ_acc never costs measured validation loss",
            all(_falls(line) for line in losses),
            "; ".join(" ".join(f"{each:+.2%}" for each in line) for line in losses),
        ),
        Outcome(
            "more λ_spa never removes more",
            all(_falls(line) for line in spa),
            "; ".join(" ".join(map(str, line)) for line in spa),
        ),
        Outcome(
            "the sweet spot of λ_acc lies inside of its list",
            all(inner),
            ", ".join(f"{line['points'][line['sweet_spot']]['value']:g}" for line in acc),
        ),
    ]


def _rows(cells: Cells) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("line", "value", "removed", "objective", "loss", "masks", "largest step", "solve s")
    ]
    for name, line in cells.items():
        points = line["points"]
        steps = [abs(b["objective"] - a["objective"]) for a, b in pairwise(points)]
        solve = sum(line["cpu_seconds"].get(stage, 0.0) for stage in NEEDED)
        for place, point in enumerate(points):
            rows.append(
                (
                    name if not place else "",
                    f"{'★ ' if place == line['sweet_spot'] else ''}{point['value']:g}",
                    str(point["removed"]),
                    f"{point['objective']:+.2%}",
                    f"{point['loss_rise']:+.2%}",
                    "" if place else str(len({each["mask"] for each in points})),
                    "" if place else f"{max(steps, default=0):.2%}",
                    "" if place else f"{solve:.1f}",
                )
            )
    return rows


def _plot(cells: Cells, axes: Axes) -> None:
    for name, line in cells.items():
        xs = [100 * point["loss_rise"] for point in line["points"]]
        ys = [100 * point["objective"] for point in line["points"]]
        (drawn,) = axes.plot(xs, ys, "o-", markersize=4, label=name)
        spot = line["sweet_spot"]
        axes.plot(xs[spot], ys[spot], "o", markersize=12, fillstyle="none", color=drawn.get_color())
    axes.set_xlabel("validation loss, change in %")
    axes.set_ylabel("objective, change in %")
    axes.legend()


EXPERIMENT = Experiment(
    "lambdas",
    "What do λ_fair, λ_acc and λ_spa buy, at what cost, and where is the sweet spot?",
    _cells,
    _outcomes,
    _rows,
    _plot,
)
