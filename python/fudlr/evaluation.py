"""Prompts, side information and figures: what a metric is measured on, and the measuring.

Gradients come from the validation prompts, figures from the test prompts. Both have one prompt a
user, so a part of the users is a part of the prompts of each.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.factors import Factors, Scores
from fudlr.common.memory import MATRICES, physical, scores_bytes
from fudlr.config import DataConfig
from fudlr.data import (
    DataWarning,
    Samples,
    Split,
    candidates_of,
    groups_or_none,
    history_groups,
    tail_items,
)
from fudlr.metrics import Seen, Side, Statistics, evaluate_lists, statistics, top_k
from fudlr.metrics.accuracy import pairwise
from fudlr.metrics.side import unseen_items
from fudlr.recommenders import Recommender, Titles
from fudlr.recommenders.base import LARGE


@dataclass(frozen=True)
class Prompts:
    """Samples that a metric is measured on, and what it needs to know of them."""

    samples: Samples
    side: Side

    def take(self, index: NDArray[np.int64]) -> Prompts:
        """The prompts at `index`."""
        return Prompts(self.samples.take(index), self.side.take(torch.from_numpy(index)))


@dataclass(frozen=True)
class Measured:
    """Figures of one adapter, what is kept of its scores on the test prompts, and losses [n]."""

    metrics: dict[str, float]
    statistics: Statistics
    losses: Tensor


def make_prompts(
    split: Split, samples: Samples, config: DataConfig, *, factored: bool = False
) -> Prompts:
    """`samples` with popularity, tail, groups and items that are not recommended.

    Where the configuration asks for candidates, all other items count as seen. `factored` says that
    no matrix of scores will be made.

    Raises:
        UsageError: k is larger than the catalogue less the longest history.
            Or a group column was named that does not exist.
    """
    interactions = split.interactions
    n, n_items = len(samples), interactions.n_items
    if not factored:
        _foretell(n, n_items)
    seen = _seen(samples, config)
    unseen = int(unseen_items(seen).min()) if n else n_items
    if config.k > unseen:
        raise UsageError(
            f"lists of the top {config.k} items were asked for",
            f"the catalogue has {n_items} items, and some user has seen all but {unseen}",
            "Lower data.k",
        )
    group, labels, membership = groups_or_none(interactions, config.user_group, config.item_group)
    side = Side(
        popularity=torch.from_numpy(split.popularity).float(),
        tail=torch.from_numpy(tail_items(split.popularity, config.tail)),
        item_groups=torch.from_numpy(membership).float(),
        target=torch.from_numpy(samples.target),
        seen=seen,
        user_group=torch.from_numpy(group[samples.user]),
        k=config.k,
        history_groups=torch.from_numpy(history_groups(samples, membership)).float(),
        group_labels=tuple(labels),
    )
    return Prompts(samples, side)


def _seen(samples: Samples, config: DataConfig) -> Tensor | Seen:
    """What is not listed: a mask, or lists where that would be large."""
    n_items = samples.interactions.n_items
    if config.candidates is None and n_items >= LARGE:
        offsets, items = map(torch.from_numpy, samples.seen_lists())
        return Seen(offsets, items, n_items)
    seen = torch.from_numpy(samples.seen())
    if config.candidates is not None:  # what is no candidate is as good as seen: never listed
        chosen = torch.from_numpy(candidates_of(samples, config.candidates))
        seen |= ~torch.zeros_like(seen).scatter(1, chosen, True)
    return seen


def _foretell(n: int, n_items: int) -> None:
    """Warn before scores that may not fit into memory are computed."""
    each = scores_bytes(n, n_items)
    if MATRICES * each > physical():
        warnings.warn(
            f"Scores of {n:,} prompts and {n_items:,} items are {each / 2**30:.1f} GiB, a request "
            f"holds about {MATRICES} such matrices at once, and this machine's memory is "
            f"{physical() / 2**30:.0f} GiB: fewer prompts need less (--set data.prompt_users=N).",
            DataWarning,
            stacklevel=3,
        )


def measure(
    recommender: Recommender,
    valid: Prompts,
    test: Prompts,
    batch: int = 256,
    valid_losses: Tensor | None = None,
) -> Measured:
    """All metrics on the test prompts, and the mean loss on both, for the adapter as it is now;
    the validation prompts' losses are computed where they are not given."""
    if valid_losses is None:
        valid_losses = recommender.losses(valid.samples, batch)
    scores, losses = recommender.evaluate(test.samples, batch)
    return measured(scores, losses, valid_losses, test.side)


def measured(scores: Scores, losses: Tensor, valid_losses: Tensor, side: Side) -> Measured:
    """Figures from scores and losses [n] of test prompts, and the validation prompts' losses."""
    found = statistics(scores, side)
    figures = found.values | pairwise(scores, side)
    figures["val_loss"] = float(valid_losses.mean())
    figures["test_loss"] = float(losses.mean())
    return Measured(figures, found, losses)


def popular_lists(side: Side) -> Tensor:
    """Each prompt's K most popular unseen items, [n, K]: what any model should beat."""
    popularity = side.popularity[:, None]
    return top_k(Factors(popularity.new_ones(len(side.target), 1), popularity), side)


def most_popular(side: Side) -> dict[str, float]:
    """Figures of those lists; none of scores, since there are none."""
    return evaluate_lists(popular_lists(side), side)


def measure_lists(recommender: Recommender, test: Prompts, beams: int) -> dict[str, float]:
    """Metrics of the lists that constrained beam search finds, without scoring every title.

    Equal to the hard metrics of `measure` where `beams` is the number of titles or more. What
    needs every item's score (surrogates, AUC) and the losses are not measured.

    Raises:
        UsageError: The recommender does not write titles.
    """
    if not isinstance(recommender, Titles):
        raise UsageError(
            "lists were to be found by beam search",
            f"the recommender is {recommender.name}, which writes no titles to search among",
            "Leave --beams out, or train with recommender.kind=titles",
        )
    top = recommender.best(test.samples, test.side.k, beams, test.side.mask)
    return evaluate_lists(top.to(test.side.target.device), test.side)
