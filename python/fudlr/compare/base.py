"""What a rival is: from a trained adapter to points, each a way to rank the catalogue.

A point is an adapter θ [d], or scores [n, M] of its own making on prompts that it is given. A rival
with a strength (a budget, a step count, a weight) gives one point a strength, so that rivals are
compared as curves and not at the strength that suits one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fudlr.config import DebiasConfig
from fudlr.debias import Result, debias
from fudlr.evaluation import Prompts
from fudlr.gradients.matrix import Forward, Loss
from fudlr.metrics import METRICS, Objective, Side
from fudlr.run import Run
from fudlr.verify import Job, retrain

Ranker = Callable[[Tensor, Prompts], Tensor]
"""From the trained adapter's scores [n, M] of prompts to other scores [n, M]."""


class Cost(NamedTuple):
    """Wall and CPU seconds, of all processes."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def plus(self, other: Cost, sign: float = 1.0) -> Cost:
        """Both together, or what lies between them."""
        return Cost(*(a + sign * b for a, b in zip(self, other, strict=True)))


NOTHING = Cost()


def clock() -> Cost:
    """Seconds since some moment: two of them have a cost between them."""
    return Cost(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Point:
    """One adapter or ranking.

    Attributes:
        strength: What sets it apart from the rival's other points, in words.
        theta: The adapter [d]; the trained one where None.
        ranker: What is done with its scores; nothing where None.
        soft: Whether the scores are those of a model, so that metrics on the catalogue softmax mean
            something; a greedy list has none.
        cost: Of all that the point needs.
    """

    strength: str
    theta: Tensor | None = None
    ranker: Ranker | None = None
    soft: bool = True
    cost: Cost = NOTHING


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
    _results: dict[float, tuple[Result, Cost]] = field(default_factory=dict)

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

    @property
    def face(self) -> tuple[Forward, Loss]:
        """What the engine's gradients are taken of."""
        return self.run.recommender.forward, self.run.recommender.loss

    def ours(self, budget: float | None = None) -> tuple[Result, Cost]:
        """Our own result under `budget`, and what the stages that it needs cost.

        Wall seconds are measured by stage; CPU seconds are the same share of the whole call's.
        """
        budget = self.config.budget if budget is None else budget
        if budget not in self._results:
            before = clock()
            # Whether there is anything to remove was decided on all users, not on these.
            found = debias(
                self.run, self.config, budget=budget, curve=(), heldout=False, force=True
            )
            whole, seconds = clock().plus(before, -1), float(found.summary["cost"]["seconds"])
            cost = Cost(seconds, whole.cpu_seconds * seconds / whole.seconds)
            self._results[budget] = (found, cost)
            self.run.engine.load(self.run.theta)
        return self._results[budget]

    def forgotten(self) -> Iterator[tuple[Any, int]]:
        """Batches of the samples that our mask names, and how many samples those are."""
        index = self.ours()[0].mask.nonzero().flatten().numpy()
        samples = self.run.split.train.take(index)
        for batch in self.run.recommender.batches(samples, self.config.batch):
            yield batch, len(samples)

    def retrained(self, weights: list[tuple[str, Tensor]], description: str) -> list[Point]:
        """A point for each weighting [n], retrained with it."""
        jobs = [Job(name, each) for name, each in weights]
        done = retrain(self.run, jobs, self.folder, self.processes, description)
        return [
            Point(job.name, each.theta, cost=Cost(each.seconds, each.cpu_seconds))
            for job, each in zip(jobs, done, strict=True)
        ]


@contextmanager
def loaded(setting: Setting, theta: Tensor) -> Iterator[None]:
    """Within, the run's model holds `theta`; afterwards the trained adapter."""
    setting.run.engine.load(theta)
    try:
        yield
    finally:
        setting.run.engine.load(setting.run.theta)


def item_classes(setting: Setting, side: Side | None = None) -> Tensor:
    """Shares of each item in groups [M, G] by the objective: head, middle, tail; or genres."""
    side = side or setting.run.valid.side
    if not setting.by_popularity and side.item_groups is not None:
        return side.item_groups.float()
    place = side.popularity.argsort(descending=True, stable=True).argsort() / len(side.popularity)
    kind = (place >= HEAD).long() + (place >= TAIL).long()
    return torch.nn.functional.one_hot(kind, 3).float()


HEAD, TAIL = 0.2, 0.8
"""Quantiles of popularity between head and middle, and middle and tail."""
