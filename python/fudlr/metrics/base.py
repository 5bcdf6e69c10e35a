"""What every metric shares: the side information, the top K, and the two faces of a metric.

A metric has a hard value, on the top K that users see, and a differentiable surrogate, on the
softmax over the catalogue, whose gradient tells which training samples raise or lower it.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError, UsageError


def _expect(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    fits = value.is_floating_point() if dtype is None else value.dtype == dtype
    asked = f"side information `{name}` was given"
    if tuple(value.shape) != shape or not fits:
        needed = f"{'float' if dtype is None else dtype} {list(shape)} is needed"
        raise UsageError(asked, f"it is {value.dtype} {list(value.shape)}", needed)
    if dtype is None and not bool(torch.isfinite(value).all() and (value >= 0).all()):
        found = "it holds NaN, infinite or negative values"
        raise UsageError(asked, found, "Give finite values of at least 0")


TILE = 2**20
"""Numbers of a tile: its temporaries stay in the cache and in memory that is used again."""


@dataclass(frozen=True, eq=False)
class Side:
    """What metrics know beside the scores, for n prompts over M items.

    Args:
        popularity: [M] float, each item's count in all training data.
        tail: [M] bool, the long tail.
        item_groups: [M, G] float, an item's shares in G groups (rows sum to 1, or to 0 where
            unknown); None where the items have no groups.
        target: [n] int64, the item that came next.
        seen: [n, M] bool, items that are not recommended again.
        user_group: [n] int64, the group of each prompt's user, -1 for none.
        k: K, the length of the lists.
        history_groups: [n, G] float, the groups' shares in each user's history; None where unknown.
        group_labels: the user groups' names; their number is U.

    Raises:
        UsageError: shapes, types or values that do not fit, or K larger than the catalogue.
    """

    popularity: Tensor
    tail: Tensor
    item_groups: Tensor | None
    target: Tensor
    seen: Tensor
    user_group: Tensor
    k: int = 10
    history_groups: Tensor | None = None
    group_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check once, before any long work."""
        n, m = self.target.numel(), self.popularity.numel()
        groups = next((g.shape[-1] for g in (self.item_groups, self.history_groups)
                       if g is not None), 0)  # fmt: skip
        for name, shape, dtype in (
            ("popularity", (m,), None),
            ("tail", (m,), torch.bool),
            ("target", (n,), torch.int64),
            ("seen", (n, m), torch.bool),
            ("user_group", (n,), torch.int64),
            ("item_groups", (m, groups), None),
            ("history_groups", (n, groups), None),
        ):
            if (value := getattr(self, name)) is not None:
                _expect(name, value, shape, dtype)
        if not 1 <= self.k <= m:
            raise UsageError(
                f"lists of K = {self.k} items were asked for",
                f"the catalogue has {m}",
                "Choose K from 1 to the size of the catalogue",
            )
        if not n:
            return
        if self.target.min() < 0 or self.target.max() >= m:
            raise UsageError("targets were given", "some are no item", "Give indices of items")
        if self.seen.gather(1, self.target[:, None]).any():
            raise UsageError(
                "targets were given",
                "some are among the items seen before, so that no list could hold them",
                "Drop repeated interactions, or take the target out of `seen`",
            )
        if self.group_labels and self.user_group.max() >= len(self.group_labels):
            raise UsageError(
                "user groups were given",
                f"the codes run to {int(self.user_group.max())}",
                f"There are {len(self.group_labels)} labels: codes start at 0",
            )

    @classmethod
    def from_arrays(cls, **fields: Any) -> Side:
        """Build from numpy arrays; the fields' names are those of the class."""
        wanted = {"popularity": torch.float64, "item_groups": torch.float64}
        wanted |= {"history_groups": torch.float64, "target": torch.int64}
        wanted |= {"user_group": torch.int64, "tail": torch.bool, "seen": torch.bool}
        for name in wanted.keys() & fields.keys():
            if fields[name] is not None:
                fields[name] = torch.as_tensor(fields[name]).to(wanted[name])
        return cls(**{**fields, "group_labels": tuple(fields.get("group_labels", ()))})

    @property
    def n_groups(self) -> int:
        """U, the number of user groups."""
        if self.group_labels:
            return len(self.group_labels)
        return int(self.user_group.max()) + 1 if self.user_group.numel() else 0

    def take(self, index: Tensor) -> Side:
        """Return the same for the prompts at `index`."""
        rows: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[index]
            for name in ("target", "seen", "user_group", "history_groups")
        }
        # The number of groups must not depend on which prompts are left.
        labels = self.group_labels or tuple(str(g) for g in range(self.n_groups))
        return dataclasses.replace(self, **rows, group_labels=labels)

    def tiles(self) -> Iterator[tuple[slice, Side]]:
        """Cut the prompts into tiles of about `TILE` scores."""
        n, m = self.seen.shape
        step = max(1, TILE // m)
        for start in range(0, n, step):
            part = torch.arange(start, min(start + step, n), device=self.seen.device)
            yield slice(start, start + len(part)), self.take(part)


def all_finite(scores: Tensor) -> bool:
    """Whether every number is; one pass over them, and nothing else of their size."""
    return bool(torch.stack(scores.detach().aminmax()).isfinite().all()) if scores.numel() else True


def check_scores(scores: Tensor, side: Side) -> None:
    """Refuse scores of another shape, or that are not finite where they count."""
    if scores.shape != side.seen.shape:
        raise UsageError(
            "scores were to be measured",
            f"they are {list(scores.shape)}",
            f"{list(side.seen.shape)} is needed: a row a prompt, a column an item",
        )
    scores = scores.detach()
    if not all_finite(scores) and not all_finite(scores.masked_fill(side.seen, 0.0)):
        raise NumericalError(
            "scores were to be measured",
            "some are NaN or infinite",
            "Check the adapter's weights and the learning rate; nothing was measured",
        )


def top_k(scores: Tensor, side: Side) -> Tensor:
    """Return the K best unseen items of each prompt, [n, K] int64, as `top_and_ties` does."""
    return top_and_ties(scores, side)[0]


def top_and_ties(scores: Tensor, side: Side) -> tuple[Tensor, Tensor]:
    """Return the K best unseen items of each prompt, [n, K] int64, best first; and whether an
    unseen item that is not listed has the score of the list's last, but for `ROUNDING`, [n] bool.

    Equal scores are taken in the order of the items' ids, which is that of their index whatever the
    order in the files; on every device (torch's own top-k promises no order). Where many prompts
    have such ties, lists are decided by ids, and say little of the model.

    Raises:
        UsageError: a prompt with fewer than K unseen items.
        NumericalError: scores that are not finite.
    """
    check_scores(scores, side)
    left = int((~side.seen).sum(1).min()) if len(scores) else side.k
    if left < side.k:
        raise UsageError(
            f"lists of K = {side.k} items were asked for",
            f"a user has only {left} items left that are not seen",
            "Choose a smaller K",
        )
    masked = scores.detach().masked_fill(side.seen, -torch.inf)
    best = masked.topk(min(side.k + 1, masked.shape[1]), dim=1)
    index = best.indices[:, : side.k]
    equal = (best.values[:, 1:] == best.values[:, :-1]).any(1)
    if bool(equal.any()):  # which of the equal ones come first is left open
        index[equal] = _by_id(masked[equal], side.k)
    if best.values.shape[1] <= side.k:
        return index, torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    last, beyond = best.values[:, -2], best.values[:, -1]
    largest = scores.detach().abs().amax(1)
    return index, (last - beyond <= ROUNDING * largest) & (beyond > -torch.inf)


def _by_id(masked: Tensor, k: int) -> Tensor:
    """The K best of each line, of equal ones those of lower index first: [n, K]."""
    last = masked.topk(k, dim=1).values[:, -1:]
    tied = masked == last
    room = k - (masked > last).sum(1, keepdim=True)
    kept = (masked > last) | (tied & (tied.cumsum(1) <= room))
    index = kept.nonzero()[:, 1].reshape(len(masked), k)
    order = masked.gather(1, index).argsort(dim=1, descending=True, stable=True)
    return index.gather(1, order)


ROUNDING = 2**-21
"""Of a row's largest score: sums of float32 in another order differ by less."""
SHARED = 2**21
"""Largest number of scores whose softmax is kept for the next metric that asks for the same."""
_shared: tuple[Tensor, Tensor, tuple[int, int], Tensor] | None = None


def catalogue_softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Return softmax(scores) over the unseen items: [n, M], rows sum to 1, 0 where seen.

    A dozen metrics ask for the same one in turn: without gradients, that of the last small tensor
    is kept, and is not to be changed in place.
    """
    global _shared  # noqa: PLW0603
    shares = not torch.is_grad_enabled() and not scores.is_inference()
    if shares and _shared is not None and _shared[0] is scores and _shared[1] is seen:
        _, _, state, found = _shared
        if state == (scores._version, seen._version):
            return found
    wide = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    found = wide.masked_fill(seen, -torch.inf).softmax(dim=1)
    if shares and scores.numel() <= SHARED:
        _shared = scores, seen, (scores._version, seen._version), found
    return found


class Metric(ABC):
    """A hard metric on the top K and its differentiable surrogate, side by side.

    Class attributes:
        name: as the objective and the files write it.
        lower_is_better: the direction that is fairer, or more accurate.
        needs_groups: whether it compares groups of users.
        needs_items: whether it needs groups of items.
        needs_history: whether it also compares them with users' histories.
        at_k: whether the hard value is written as `name@K` or as `name`.
        has_hard: whether there is a value on the top K; a user's function may have none.
        soft_suffix: what the surrogate's name in the files adds to `name`; empty where the
            surrogate is the same measure on the whole catalogue.
        bounds: the least and the largest value there can be, hard or soft.
    """

    name: str
    lower_is_better: bool
    needs_groups: bool = False
    needs_items: bool = False
    needs_history: bool = False
    at_k: bool = False
    has_hard: bool = True
    soft_suffix: str = "_soft"
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @abstractmethod
    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """Return the value on the lists `top` [n, K]; `weights` [n] repeats prompts."""

    @abstractmethod
    def surrogate(self, scores: Tensor, side: Side) -> Tensor:
        """Return a scalar, differentiable in `scores` [n, M]."""

    def missing(self, side: Side) -> str | None:
        """Say what the metric needs and `side` lacks, or None."""
        items = side.item_groups is not None and side.item_groups.shape[1] > 1
        if self.needs_history and not (items and side.history_groups is not None):
            return "it compares item groups with users' histories, and one of them is missing"
        if self.needs_items and not items:
            return "it compares item groups, and the items have none"
        present = side.user_group[side.user_group >= 0].unique().numel()
        if self.needs_groups and present < 2:
            return f"it compares groups of users, and the prompts have {present}"
        return None

    @property
    def is_mean(self) -> bool:
        """Whether the surrogate is a mean over prompts, and so its gradient."""
        return False

    def hard_key(self, k: int) -> str:
        """Return the hard value's name in the files."""
        return f"{self.name}@{k}" if self.at_k else self.name

    @property
    def soft_key(self) -> str:
        """The surrogate's name in the files."""
        return self.name + self.soft_suffix


Rows = Callable[[Tensor, Side], Tensor]
"""(lists [n, K] or scores [n, M], side) to what is to be summed over prompts, [n, S]."""
Finish = Callable[[Tensor, Tensor, Side], Tensor]
"""(sums [R, S], total weights [R], side) to the metric, [R]."""


def mean(sums: Tensor, total: Tensor, side: Side) -> Tensor:
    """The mean over prompts of rows [n, 1]."""
    return sums[:, 0] / total


class SummedMetric(Metric):
    """A metric that is a function of weighted sums over prompts, as all built-in ones are.

    So one matrix product gives the metric for any number of weightings, which makes bootstrap
    intervals cheap.

    Args:
        name: As the objective and the files write it.
        hard_rows: What is to be summed, from the top K: [n, S] float64.
        soft_rows: The same from the catalogue softmax: differentiable.
        finish: Turns sums into the metric.
        attributes: Those of `Metric`, where they are not its defaults.
    """

    def __init__(
        self, name: str, hard_rows: Rows, soft_rows: Rows, finish: Finish = mean, **attributes: Any
    ) -> None:
        self.name, self.bounds = name, (0.0, 1.0)
        self.hard_rows, self.soft_rows, self.finish = hard_rows, soft_rows, finish
        self.soft_finish = finish
        for attribute, value in attributes.items():
            setattr(self, attribute, value)

    @property
    def is_mean(self) -> bool:
        """Whether the surrogate is a mean over prompts, and so its gradient."""
        return self.soft_finish is mean

    def hard_sums(self, top: Tensor, side: Side, weights: Tensor) -> Tensor:
        """Sum the hard rows with each of `weights` [R, n]: [R, S]."""
        return weights @ self.hard_rows(top, side)

    def hard_many(self, top: Tensor, side: Side, weights: Tensor) -> Tensor:
        """Return the hard value under each of `weights` [R, n]: [R] float64."""
        weights = weights.double()
        return self.finish(self.hard_sums(top, side, weights), weights.sum(1), side)

    def soft_many(self, scores: Tensor, side: Side, weights: Tensor) -> Tensor:
        """Return the surrogate under each of `weights` [R, n]: [R]."""
        rows = self.soft_rows(scores, side)
        weights = weights.to(rows.dtype)
        return self.soft_finish(weights @ rows, weights.sum(1), side)

    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """Return the value on the lists `top` [n, K]; `weights` [n] repeats prompts."""
        if weights is None:
            weights = torch.ones(len(top), device=top.device)
        return self.hard_many(top, side, weights[None])[0]

    def surrogate(self, scores: Tensor, side: Side) -> Tensor:
        """Return a scalar, differentiable in `scores` [n, M]."""
        check_scores(scores, side)
        ones = torch.ones(1, len(scores), device=scores.device)
        return self.soft_many(scores, side, ones)[0]


def repeated(top: Tensor, side: Side, weights: Tensor | None) -> tuple[Tensor, Side]:
    """Lists and side with each prompt as often as its whole weight [n] says."""
    if weights is None:
        return top, side
    index = torch.arange(len(top), device=top.device).repeat_interleave(weights.long())
    return top[index], side.take(index)
