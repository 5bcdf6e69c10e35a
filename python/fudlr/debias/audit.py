"""What an auditor of a removal asks: do the removed samples look as if never trained on?

**Membership inference** by the loss (Yeom, Giacomelli, Fredrikson, Jha 2018, arXiv 1709.01604): a
sample with a low loss is taken for a member of the training data. Its AUC

    P(ℓ_removed < ℓ_heldout) + ½ P(ℓ_removed = ℓ_heldout)

is over all pairs of a removed sample and a test prompt, which no training saw. It is ½ where losses
do not tell them apart. What it should be after a removal is what retraining makes it, for removed
samples and test prompts differ in more than in training.

**Distance of predictions**, for two adapters p and q: the mean over test prompts of the total
variation ½ Σ_i |p_i − q_i| over the unseen items, and the share of a list that is in the other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fudlr.common.factors import Scores, dense
from fudlr.data import Samples
from fudlr.evaluation import Measured, Prompts
from fudlr.metrics import Side, top_k
from fudlr.metrics.scores import LEAST, softmax_rows
from fudlr.run import Run

MOST = 2000
"""Kept samples, and prompts whose predictions are compared, at most; drawn at random."""
REMOVED, KEPT, MEMBERSHIP = "removed_loss", "kept_loss", "membership_auc"
"""What the figures are called."""


@dataclass(frozen=True)
class Audit:
    """The samples and prompts of an audit, drawn once for all adapters.

    Attributes:
        run: What samples were removed from.
        removed, kept: Training samples.
        prompts: Test prompts whose predictions are compared.
        batch: Samples that go through the model together.
    """

    run: Run
    removed: Samples
    kept: Samples
    prompts: Prompts
    batch: int

    @classmethod
    def of(cls, run: Run, mask: Tensor, batch: int) -> Self:
        """The audit of a mask `[n]`, 1 removed; drawn by the run's seed."""
        train, random = run.split.train, np.random.default_rng(run.config.seed)
        kept = random.permutation(np.flatnonzero(mask.numpy() == 0))[:MOST]
        prompts = random.permutation(len(run.test.samples))[:MOST]
        removed = train.take(np.flatnonzero(mask.numpy()))
        return cls(run, removed, train.take(np.sort(kept)), run.test.take(np.sort(prompts)), batch)

    def of_adapter(self, found: Measured) -> Measured:
        """`found`, of the adapter that the model holds, with the audit's figures."""
        losses = self.run.recommender.losses(self.removed, self.batch)
        kept = self.run.recommender.losses(self.kept, self.batch)
        figures = {
            REMOVED: float(losses.mean()),
            KEPT: float(kept.mean()),
            MEMBERSHIP: membership_auc(losses, found.losses),
        }
        return replace(found, metrics={**found.metrics, **figures})

    def distances(self, thetas: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Of every two of the adapters `[d]`; the model holds the last of them afterwards."""
        scores, lists, side = {}, {}, self.prompts.side
        for name, theta in thetas.items():
            self.run.engine.load(theta)
            scores[name] = self.run.recommender.evaluate(self.prompts.samples, self.batch)[0]
            lists[name] = top_k(scores[name], side)
        variations = _variations(scores, side)
        return {
            f"{b} from {a}": {
                "total_variation": variations[a, b],
                "shared": float((lists[a][:, :, None] == lists[b][:, None]).sum() / side.k)
                / len(lists[a]),
            }
            for a, b in combinations(thetas, 2)
        }


def _variations(scores: Mapping[str, Scores], side: Side) -> dict[tuple[str, str], float]:
    """½ Σ |p − q| of every two, the mean over the prompts; a tile of them at a time."""
    found = dict.fromkeys(combinations(scores, 2), 0.0)
    for part, tile in side.tiles(LEAST):
        shares = {name: softmax_rows(dense(each[part]), tile) for name, each in scores.items()}
        for a, b in found:
            found[a, b] += float((shares[a] - shares[b]).abs().sum()) / 2 / len(side.target)
    return found


def membership_auc(members: Tensor, others: Tensor) -> float:
    """P(a member's loss is lower) + ½ P(it is equal), over all pairs of losses `[n]` and `[m]`."""
    ordered = others.double().sort().values
    asked = members.double()
    below = torch.searchsorted(ordered, asked)
    at_most = torch.searchsorted(ordered, asked, right=True)
    above = len(ordered) - (below + at_most).double() / 2
    return float(above.mean() / len(ordered))
