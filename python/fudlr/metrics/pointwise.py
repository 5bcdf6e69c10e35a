"""Sums of a function of single scores, of which no more than a block is made at a time.

    over items:    y_i = Σ_m f(s_im − c_i) v_m,    [n, c]
    over prompts:  y_m = Σ_i f(s_im − c_i),        [M]

m runs over the unseen items of prompt i, s are products of factors, c_i is a score of the prompt's
own (the target's, or log Σ exp). A block stays in the cache from its product to its sums; backwards
it is made once more. f must be 0 at −∞.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fudlr.common.factors import Factors
from fudlr.metrics.side import Seen

Function = Callable[[Tensor], Tensor]
PROMPTS, ITEMS = 128, 4096
"""A block's."""


class _Given(NamedTuple):
    items: Tensor
    seen: Seen
    of: Function
    values: Tensor | None


class _Block(NamedTuple):
    """Prompts, items, and s − c of them [p, m], −∞ where seen."""

    prompts: slice
    items: slice
    away: Tensor


def _blocks(users: Tensor, centre: Tensor, given: _Given) -> Iterator[_Block]:
    n, m = len(users), len(given.items)
    starts = torch.arange(0, m, ITEMS, device=users.device)
    for first in range(0, n, PROMPTS):
        prompts = slice(first, min(first + PROMPTS, n))
        seen = given.seen[torch.arange(prompts.start, prompts.stop, device=users.device)]
        hidden, order = seen.items.sort()
        rows = seen.rows[order]
        cuts = [*torch.searchsorted(hidden, starts).tolist(), len(hidden)]
        own, shift = users[prompts], centre[prompts]
        for number, start in enumerate(range(0, m, ITEMS)):
            items = slice(start, min(start + ITEMS, m))
            away = own @ given.items[items].to(own.dtype).T
            away -= shift
            here = slice(cuts[number], cuts[number + 1])
            away[rows[here], hidden[here] - start] = -torch.inf
            yield _Block(prompts, items, away)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, centre: Tensor, given: _Given) -> Tensor:
        ctx.given = given
        ctx.save_for_backward(users, centre)
        if given.values is None:
            found = users.new_zeros(len(given.items), dtype=torch.float64)
            for block in _blocks(users, centre, given):
                found[block.items] += given.of(block.away).sum(0)
            return found
        found = users.new_zeros(len(users), given.values.shape[1], dtype=torch.float64)
        for block in _blocks(users, centre, given):
            found[block.prompts] += given.of(block.away) @ given.values[block.items]
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        given: _Given = ctx.given
        users, centre = ctx.saved_tensors
        to_users, to_centre = torch.zeros_like(users), torch.zeros_like(centre)
        for prompts, items, away in _blocks(users, centre, given):
            with torch.enable_grad():
                value = given.of(away.requires_grad_())
            if given.values is None:
                way = grad[items].to(value.dtype).expand_as(value)
            else:
                way = grad[prompts].to(value.dtype) @ given.values[items].T
            (through,) = torch.autograd.grad(value, away, way)
            to_users[prompts] += through @ given.items[items].to(through.dtype)
            to_centre[prompts] -= through.sum(1, keepdim=True)
        return to_users, to_centre, None


def over_items(of: Function, scores: Factors, seen: Seen, centre: Tensor, values: Tensor) -> Tensor:
    """Σ over unseen items of f(s − c) v: [n, c] float64; `centre` [n, 1], `values` [M, c]."""
    return _apply(scores, centre, _Given(scores.items, seen, of, values.to(scores.users)))


def over_prompts(of: Function, scores: Factors, seen: Seen, centre: Tensor) -> Tensor:
    """Σ over prompts that have not seen the item of f(s − c): [M] float64."""
    return _apply(scores, centre, _Given(scores.items, seen, of, None))


def _apply(scores: Factors, centre: Tensor, given: _Given) -> Tensor:
    apply: Any = _Sums.apply
    found: Tensor = apply(scores.users, centre, given)
    return found
