"""λ_fair, λ_acc and λ_spa swept one at a time: what each buys, its cost, and the sweet spot.

    score_i = λ_fair · s_i / std(s) + λ_acc · a_i / std(a) + λ_spa < 0

λ_fair and λ_acc have effect through their ratio, and λ_spa beside both: λ_spa = 1 asks for samples
one standard deviation below 0. Each line is a `fudlr sweep` with the two other λ's held at the
configuration's values; the sweet spot is the sweep's own rule. Sensitivity is the largest change of
the objective between neighbouring values, and how many masks of the line differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from fudlr.sweep import Grid, sweep_run

from experiments.common import Experiment, Options, Outcome, trained

GRIDS: dict[str, tuple[float, ...]] = {
    "lambda_fair": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    "lambda_acc": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    "lambda_spa": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
}


def _cells(options):
    return {
        f"{name}, seed {seed}": partial(_line, options, seed, name)
        for seed in options.seeds
        for name in GRIDS
    }


def _line(options: Options, seed: int, swept: str):
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


def _point(point, swept: str):
    return {
        "value": point[swept],
        "removed": point["removed"],
        "mask": point["mask"],
        "objective": point["measured"]["objective"],
        "loss_rise": point["measured"]["loss_rise"],
        "predicted": {name: point["predicted"][name] for name in ("objective", "loss_rise")},
        "test": point["measured"]["test"],
    }


def _of(cells, swept: str):
    return [cell for cell in cells.values() if cell["swept"] == swept]


def _falls(values: Sequence[float]) -> bool:
    return all(later <= earlier for earlier, later in pairwise(values))


def _outcomes(cells):
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


def _rows(cells):
    return [
        {
            "line": name,
            "value": f"{'* ' if place == line['sweet_spot'] else ''}{point['value']:g}",
            "removed": str(point["removed"]),
            "objective": f"{point['objective']:+.2%}",
            "loss": f"{point['loss_rise']:+.2%}",
        }
        for name, line in cells.items()
        for place, point in enumerate(line["points"])
    ]


EXPERIMENT = Experiment(
    "What do λ_fair, λ_acc and λ_spa buy, at what cost, and where is the sweet spot?",
    _cells,
    _outcomes,
    _rows,
)
