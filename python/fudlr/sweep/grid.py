"""The points of a sweep, every λ_fair with every λ_acc, λ_spa and budget, and their order.

Among the points whose validation loss rises by at most `max_loss_rise`, relative to θ*, the one
whose objective falls most is the sweet spot; equal ones by the fewer removals. Where none keeps to
that, the points follow by how little the loss rises. Both figures are of the validation prompts, so
that the test prompts' figures are not chosen by: the measured ones where every point
has them, else the predicted ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from fudlr.common.errors import UsageError
from fudlr.config import DebiasConfig

LAMBDA_ACC = (0.0, 0.5, 1.0, 2.0)
BUDGETS = (0.2, 0.5, 1.0)
"""Multiples of the configured values that are swept where no list is given."""
RULE = (
    "the lowest objective among points whose validation loss rises by at most {limit:.1%}, "
    "by {basis} figures of the validation prompts"
)


@dataclass(frozen=True)
class Point:
    """One request's λ's and budget; the names are those of `DebiasConfig`."""

    lambda_fair: float
    lambda_acc: float
    lambda_spa: float
    budget: float

    def options(self, config: DebiasConfig) -> DebiasConfig:
        """`config` with this point's values."""
        return config.model_copy(update=asdict(self))


@dataclass(frozen=True)
class Grid:
    """Lists of values, each without repetition.

    Raises:
        UsageError: A list is empty or names a value twice, a λ is negative, a budget is outside
            (0, 1], or λ_fair and λ_acc would both be 0 somewhere.
    """

    lambda_fair: tuple[float, ...] = (1.0,)
    lambda_acc: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    lambda_spa: tuple[float, ...] = (0.0,)
    budget: tuple[float, ...] = (0.02, 0.05, 0.1)

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            _check(name, values)
        if 0 in self.lambda_fair and 0 in self.lambda_acc:
            raise UsageError(
                "a sweep over lambda_fair and lambda_acc was asked for",
                "both lists have a 0, and with both weights at 0 all samples score the same",
                "Leave the 0 out of one of them",
            )

    @classmethod
    def around(cls, config: DebiasConfig, **lists: tuple[float, ...] | None) -> Grid:
        """The lists that are given, and multiples of the configured values for the others."""
        accuracy = [round(f * config.lambda_acc, 12) for f in LAMBDA_ACC]
        if config.lambda_fair == 0:
            accuracy.remove(0.0)
        usual = {
            "lambda_fair": (config.lambda_fair,),
            "lambda_acc": tuple(dict.fromkeys(accuracy)),
            "lambda_spa": (config.lambda_spa,),
            "budget": tuple(round(f * config.budget, 12) for f in BUDGETS),
        }
        return cls(**(usual | {n: values for n, values in lists.items() if values is not None}))

    @property
    def points(self) -> list[Point]:
        """All combinations, the budget running fastest."""
        lists = (self.lambda_fair, self.lambda_acc, self.lambda_spa, self.budget)
        return [Point(*values) for values in product(*lists)]


def parse_list(name: str, text: str) -> tuple[float, ...]:
    """`0,0.5,1` as numbers.

    Raises:
        UsageError: An entry is not a number.
    """
    values = []
    for entry in text.split(","):
        try:
            values.append(float(entry))
        except ValueError as error:
            raise UsageError(
                f"{name} {text!r} was to be swept",
                f"{entry.strip()!r} is not a number",
                "Write numbers with commas between them, such as 0,0.5,1",
            ) from error
    return tuple(values)


def _check(name: str, values: Sequence[float]) -> None:
    share = name == "budget"
    bad = [v for v in values if not math.isfinite(v) or v < 0 or (share and not 0 < v <= 1)]
    if values and not bad and len(set(values)) == len(values):
        return
    limits = "above 0 and at most 1" if share else "finite and not negative"
    found = f"{bad[0]} is not {limits}" if bad else "a value stands there twice"
    raise UsageError(
        f"{name} {', '.join(map(str, values))} was to be swept",
        found if values else "the list is empty",
        f"Give numbers that are {limits}, each once",
    )


def basis(records: Sequence[Mapping[str, Any]]) -> str:
    """`measured` where every point is, else `predicted`."""
    return "measured" if all(record["measured"] for record in records) else "predicted"


def rank(records: Sequence[Mapping[str, Any]], max_loss_rise: float) -> list[int]:
    """Places of the points, the sweet spot first."""
    kind = basis(records)

    def order(place: int) -> tuple[bool, float, int]:
        figures = records[place][kind]
        over = figures["loss_rise"] > max_loss_rise
        first = figures["loss_rise"] if over else figures["objective"]
        return over, first, records[place]["removed"]

    return sorted(range(len(records)), key=order)
