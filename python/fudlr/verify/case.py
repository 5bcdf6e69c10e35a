"""What the checks share: a result with its run, its mask and its adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.factors import Scores
from fudlr.config import DebiasConfig
from fudlr.debias import Audit
from fudlr.evaluation import Measured, Prompts, measure
from fudlr.gradients.metric import VALIDATION_LOSS
from fudlr.report.data import ACCURACY, INFLUENCE
from fudlr.run import Run
from fudlr.verify.retraining import Job, Retrained, retrain

FEWEST = 3
"""Removals below which no rank correlation is formed."""


@dataclass(frozen=True)
class Checks:
    """Which checks, and how large.

    Attributes:
        seeds: Seeds of training for `seeds`: retraining with and without, in the same order each.
        lds: Random removals of the linear datamodeling score; 0 for none.
        targeted: Targeted ones.
        share: Share of the samples that each of them removes.
        heldout: Whether held-out users are judged by retraining too.
        forgetting: Whether what returns in one and two epochs of training is measured.
        processes: Workers.
    """

    seeds: tuple[int, ...] = ()
    lds: int = 0
    targeted: int = 0
    share: float = 0.1
    heldout: bool = False
    forgetting: bool = False
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse before long work what cannot be done."""
        for name in ("lds", "targeted"):
            if 0 < (count := getattr(self, name)) < FEWEST:
                raise UsageError(
                    f"{name} over {count} retrainings was asked for",
                    "a rank correlation of so few says nothing",
                    f"Ask for at least {FEWEST}; 30 give an interval worth reading",
                )
        if not 0 < self.share < 1:
            raise UsageError(
                f"removals of a share of {self.share} were asked for",
                "it is not between 0 and 1",
                "Give a share such as 0.1",
            )


@dataclass(frozen=True)
class Case:
    """One result to verify.

    Attributes:
        run: What was debiased.
        config: With which options.
        table: The mask table, one row a training sample, in their order.
        mask: m [n], 1 removed.
        theta: The updated parameters [d].
        checks: What to do.
        folder: Where retrainings are kept; None keeps none.
        audited: Whether the mask was given and not chosen, and the removal is audited.
    """

    run: Run
    config: DebiasConfig
    table: pl.DataFrame
    mask: Tensor
    theta: Tensor
    checks: Checks = field(default_factory=Checks)
    folder: Path | None = None
    audited: bool = False

    @cached_property
    def audit(self) -> Audit:
        """Its samples and prompts."""
        return Audit.of(self.run, self.mask, self.config.batch)

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""
        return self.run.config.seed

    @property
    def influence(self) -> dict[str, Tensor]:
        """The influence of each sample on every metric that was scored, `val_loss` among them."""
        names = [n.removeprefix(INFLUENCE) for n in self.table.columns if n.startswith(INFLUENCE)]
        return {
            VALIDATION_LOSS if name == ACCURACY else name: torch.from_numpy(
                self.table[INFLUENCE + name].to_numpy().copy()
            )
            for name in names
        }

    def measure(self, theta: Tensor) -> Measured:
        """All figures of the adapter `theta` [d], which the model then holds."""
        self.run.engine.load(theta)
        found = measure(self.run.recommender, self.run.valid, self.run.test, self.config.batch)
        return self.audit.of_adapter(found) if self.audited else found

    def scores(self, theta: Tensor, prompts: Prompts | None = None) -> Scores:
        """Scores [n, M] of the adapter `theta` [d], which the model then holds, on test prompts."""
        self.run.engine.load(theta)
        samples = (prompts or self.run.test).samples
        return self.run.recommender.evaluate(samples, self.config.batch)[0]

    def retrain(self, jobs: list[Job], description: str) -> list[Retrained]:
        """Do the jobs, or read what they gave."""
        return retrain(self.run, jobs, self.folder, self.checks.processes, description)
