"""What a rival is: from a trained adapter to points, each a way to rank the catalogue.

A point is an adapter θ [d], or scores [n, M] of its own making on prompts that it is given. A rival
with a strength (a budget, a step count, a weight) gives one point a strength, so that rivals are
compared as curves and not at the strength that suits one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fudlr.config import DebiasConfig
from fudlr.debias import Result, debias
from fudlr.evaluation import Prompts, make_prompts
from fudlr.metrics import METRICS, Objective
from fudlr.run import Run
from fudlr.verify import Job, Retrained, retrain

Ranker = Callable[[Tensor, Prompts], Tensor]
"""From the trained adapter's scores [n, M] of prompts to other scores [n, M]."""


@dataclass(frozen=True)
class Point:
    """One adapter or ranking.

    Attributes:
        strength: What sets it apart from the rival's other points, in words.
        theta: The adapter [d]; the trained one where None.
        ranker: What is done with its scores; nothing where None.
        soft: Whether the scores are those of a model, so that metrics on the catalogue softmax mean
            something; a greedy list has none.
        cost: `seconds` and `cpu_seconds` of all that the point needs, of all processes.
        mask: m [n], where samples were removed.
    """

    strength: str
    theta: Tensor | None = None
    ranker: Ranker | None = None
    soft: bool = True
    cost: Mapping[str, float] = field(default_factory=dict)
    mask: Tensor | None = None

    def spent(self, name: str) -> float:
        """`seconds` or `cpu_seconds`."""
        return self.cost.get(name, 0.0)


@dataclass(frozen=True)
class Rival:
    """A line of the table.

    Attributes:
        name: Key.
        about: One sentence.
        points: From a setting to points, always the same number in the same order.
        uses_users: Whether gradients of validation users steer it: it is then judged on the others.
        names_samples: Whether it says which training samples cause the bias.
    """

    name: str
    about: str
    points: Callable[[Setting], list[Point]]
    uses_users: bool = False
    names_samples: bool = False


@dataclass
class Setting:
    """What rivals are given: a trained run, an objective, and validation prompts to steer by.

    Attributes:
        run: Its validation samples are those that may steer.
        config: Objective, budget and λ's of our own method; rivals read what concerns them.
        folder: Where retrainings are kept.
        processes: Workers for retraining.
    """

    run: Run
    config: DebiasConfig
    folder: Path | None = None
    processes: int = 1
    _results: dict[float, tuple[Result, dict[str, float]]] = field(default_factory=dict)

    @cached_property
    def valid(self) -> Prompts:
        """The prompts that may steer."""
        return make_prompts(self.run.split, self.run.split.valid, self.run.config.data)

    @cached_property
    def objective(self) -> Objective:
        """What should fall."""
        return Objective.parse(self.config.objective)

    @property
    def by_popularity(self) -> bool:
        """Whether the objective is about popularity, not about groups of users."""
        return not any(METRICS[name].needs_groups for name in self.objective.names)

    @property
    def n(self) -> int:
        """Training samples."""
        return len(self.run.split.train)

    @property
    def room(self) -> int:
        """How many the budget removes."""
        return int(self.config.budget * self.n + 1e-9)

    def ours(self, budget: float | None = None) -> tuple[Result, dict[str, float]]:
        """Our own result under `budget`, and what the stages that it needs cost.

        Wall seconds are measured by stage; CPU seconds are the same share of the whole call's.
        """
        budget = self.config.budget if budget is None else budget
        if budget not in self._results:
            watch = Stopwatch()
            # Whether there is anything to remove was decided on all users, not on these.
            found = debias(
                self.run, self.config, budget=budget, curve=(), heldout=False, force=True
            )
            whole, seconds = watch.read(), float(found.summary["cost"]["seconds"])
            cpu = whole["cpu_seconds"] * seconds / whole["seconds"]
            self._results[budget] = (found, {"seconds": seconds, "cpu_seconds": cpu})
            self.run.engine.load(self.run.theta)
        return self._results[budget]

    def retrain(self, jobs: list[Job], description: str) -> list[Retrained]:
        """Really retrain."""
        return retrain(self.run, jobs, self.folder, self.processes, description)

    def retrained(self, weights: list[tuple[str, Tensor]], description: str) -> list[Point]:
        """A point for each weighting [n], retrained with it."""
        done = self.retrain([Job(name, each) for name, each in weights], description)
        return [
            Point(name, each.theta, cost=costs(each))
            for (name, _), each in zip(weights, done, strict=True)
        ]


def costs(done: Retrained) -> dict[str, float]:
    """What a retraining cost."""
    return {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds}


def together(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The sum of two costs."""
    return {name: value + other.get(name, 0.0) for name, value in one.items()}


class Stopwatch:
    """Seconds and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), time.process_time())

    def read(self, before: Mapping[str, float] | None = None) -> dict[str, float]:
        """A point's cost, with what was spent `before`."""
        spent = {
            "seconds": time.perf_counter() - self._start[0],
            "cpu_seconds": time.process_time() - self._start[1],
        }
        return together(spent, before or {})


@contextmanager
def loaded(setting: Setting, theta: Tensor) -> Iterator[None]:
    """Within, the run's model holds `theta`; afterwards the trained adapter."""
    setting.run.engine.load(theta)
    try:
        yield
    finally:
        setting.run.engine.load(setting.run.theta)


def as_scores(lists: Tensor, n_items: int) -> Tensor:
    """Scores [n, M] whose top K are the `lists` [n, K], best first."""
    n, k = lists.shape
    scores = torch.full((n, n_items), -1.0)
    return scores.scatter_(1, lists, torch.arange(k, 0, -1.0).expand(n, k))
