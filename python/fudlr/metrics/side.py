"""What metrics know beside the scores: popularity, groups, targets, and what users have seen."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import UsageError

TILE = 2**20
"""Numbers of a tile: its temporaries stay in the cache and in memory that is used again."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The items that n prompts' users have seen, as lists: what [n, M] booleans say, in less.

    Attributes:
        offsets: [n + 1] int64; prompt i's are `items[offsets[i] : offsets[i + 1]]`.
        items: [S] int64, no item twice in a list.
        n_items: M.
    """

    offsets: Tensor
    items: Tensor
    n_items: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, M)."""
        return len(self.offsets) - 1, self.n_items

    @property
    def device(self) -> torch.device:
        """Where the lists are."""
        return self.items.device

    @cached_property
    def rows(self) -> Tensor:
        """[S] int64, the prompt of each of `items`."""
        prompts = torch.arange(len(self.offsets) - 1, device=self.device)
        return prompts.repeat_interleave(self.offsets.diff())

    @classmethod
    def of(cls, mask: Tensor) -> Seen:
        """The lists of a mask [n, M]."""
        counts = mask.sum(1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(offsets, mask.nonzero()[:, 1].contiguous(), mask.shape[1])

    def with_one(self, item: Tensor) -> Seen:
        """The lists with one more item each, [n] int64, that is not in them."""
        prompts = torch.arange(len(item), device=self.device)
        order = torch.cat([self.rows, prompts]).argsort(stable=True)
        more = torch.arange(len(self.offsets), device=self.device)
        return Seen(self.offsets + more, torch.cat([self.items, item])[order], self.n_items)

    def dense(self) -> Tensor:
        """The mask [n, M]."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[self.rows, self.items] = True
        return mask

    def __getitem__(self, index: Tensor) -> Seen:
        """The lists of the prompts at `index`, [r] int64 or [n] bool."""
        start, counts = self.offsets[:-1][index], self.offsets.diff()[index]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shift = (start - offsets[:-1]).repeat_interleave(counts)
        places = torch.arange(len(shift), device=self.device) + shift
        return Seen(offsets, self.items[places], self.n_items)


def unseen_items(seen: Tensor | Seen) -> Tensor:
    """How many items each prompt can be shown, [n] int64."""
    return (~seen).sum(1) if isinstance(seen, Tensor) else seen.n_items - seen.offsets.diff()


def _expect(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    fits = value.is_floating_point() if dtype is None else value.dtype == dtype
    asked = f"side information `{name}` was given"
    if tuple(value.shape) != shape or not fits:
        needed = f"{'float' if dtype is None else dtype} {list(shape)} is needed"
        raise UsageError(asked, f"it is {value.dtype} {list(value.shape)}", needed)
    if dtype is None and not bool(torch.isfinite(value).all() and (value >= 0).all()):
        found = "it holds NaN, infinite or negative values"
        raise UsageError(asked, found, "Give finite values of at least 0")


@dataclass(frozen=True, eq=False)
class Side:
    """What metrics know beside the scores, for n prompts over M items.

    Args:
        popularity: [M] float, each item's count in all training data.
        tail: [M] bool, the long tail.
        item_groups: [M, G] float, an item's shares in G groups (rows sum to 1, or to 0 where
            unknown); None where the items have no groups.
        target: [n] int64, the item that came next.
        seen: Items that are not recommended again: [n, M] bool, or lists of them.
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
    seen: Tensor | Seen
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
            ("user_group", (n,), torch.int64),
            ("item_groups", (m, groups), None),
            ("history_groups", (n, groups), None),
        ):
            if (value := getattr(self, name)) is not None:
                _expect(name, value, shape, dtype)
        if isinstance(self.seen, Tensor) or self.seen.shape != (n, m):
            _expect("seen", self.mask, (n, m), torch.bool)
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
        if self._targets_seen():
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

    def _targets_seen(self) -> bool:
        if isinstance(self.seen, Tensor):
            return bool(self.seen.gather(1, self.target[:, None]).any())
        return bool((self.seen.items == self.target[self.seen.rows]).any())

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
    def shape(self) -> tuple[int, int]:
        """(n, M), that of scores."""
        return self.target.numel(), self.popularity.numel()

    @cached_property
    def mask(self) -> Tensor:
        """`seen` as a mask [n, M]."""
        return self.seen if isinstance(self.seen, Tensor) else self.seen.dense()

    @cached_property
    def lists(self) -> tuple[Tensor, Tensor]:
        """`seen` as offsets [n + 1] and items."""
        seen = Seen.of(self.seen) if isinstance(self.seen, Tensor) else self.seen
        return seen.offsets, seen.items

    @cached_property
    def values(self) -> Tensor:
        """What items are worth to the metrics that are expectations, [M, 2 + G]: log(1 +
        popularity), whether they are of the tail, and their shares in groups."""
        own = torch.stack([self.popularity.log1p(), self.tail.to(self.popularity.dtype)], 1)
        return own if self.item_groups is None else torch.cat([own, self.item_groups], 1)

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
        self.values  # noqa: B018  (made once, for all parts)
        found = copy.copy(self)  # what was checked is not checked again
        for made in ("mask", "lists"):
            found.__dict__.pop(made, None)
        found.__dict__.update(rows, group_labels=labels)
        return found

    def tiles(self, least: int = 1) -> Iterator[tuple[slice, Side]]:
        """Cut the prompts into tiles of about `TILE` scores, of at least so many prompts."""
        n, m = self.shape
        step = max(least, TILE // m)
        for start in range(0, n, step):
            part = torch.arange(start, min(start + step, n), device=self.target.device)
            yield slice(start, start + len(part)), self.take(part)
