"""What metrics are made of: the catalogue softmax, the lists, and their reductions over items.

    p_i = softmax(s_i) over the items that user i has not seen

Scores are a matrix [n, M], or factors that it is a product of. Of factors no matrix is made:
expectations, mean distributions and lists come from `fudlr_ext.ops`, which keep a tile of scores
for as long as it is used, sums of functions of single scores from `pointwise`, and whatever else a
metric is made of from `by_tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError, UsageError
from fudlr.common.factors import Factors, Scores
from fudlr.metrics.side import Seen, Side, unseen_items
from fudlr_ext import ops

Rows = Callable[[Any, Side], Tensor]
"""(lists [n, K] or scores [n, M], side) to what is to be summed over prompts, [n, S]."""
LEAST = 16
"""Prompts of a tile of factors: products with fewer rows read the items too often."""


def all_finite(scores: Tensor) -> bool:
    """Whether every number is; one pass over them, and nothing else of their size."""
    return bool(torch.stack(scores.detach().aminmax()).isfinite().all()) if scores.numel() else True


def check_scores(scores: Scores, side: Side) -> None:
    """Refuse scores of another shape, or that are not finite where they count."""
    if tuple(scores.shape) != side.shape:
        raise UsageError(
            "scores were to be measured",
            f"they are {list(scores.shape)}",
            f"{list(side.shape)} is needed: a row a prompt, a column an item",
        )
    if isinstance(scores, Factors):
        finite = all(map(all_finite, (scores.users, scores.items)))
    else:
        scores = scores.detach()
        finite = all_finite(scores) or all_finite(scores.masked_fill(side.mask, 0.0))
    if not finite:
        raise NumericalError(
            "scores were to be measured",
            "some are NaN or infinite",
            "Check the adapter's weights and the learning rate; nothing was measured",
        )


def top_k(scores: Scores, side: Side) -> Tensor:
    """Return the K best unseen items of each prompt, [n, K] int64, as `top_and_ties` does."""
    return top_and_ties(scores, side)[0]


def top_and_ties(scores: Scores, side: Side) -> tuple[Tensor, Tensor]:
    """Return the K best unseen items of each prompt, [n, K] int64, best first; and whether an
    unseen item that is not listed has the score of the list's last, but for `ROUNDING` of the
    largest score (of factors: of |h_i| max |e|, the size of the sums), [n] bool.

    Equal scores are taken in the order of the items' ids, which is that of their index whatever the
    order in the files; on every device (torch's own top-k promises no order). Where many prompts
    have such ties, lists are decided by ids, and say little of the model.

    Raises:
        UsageError: a prompt with fewer than K unseen items.
        NumericalError: scores that are not finite.
    """
    check_scores(scores, side)
    left = int(unseen_items(side.seen).min()) if len(scores) else side.k
    if left < side.k:
        raise UsageError(
            f"lists of K = {side.k} items were asked for",
            f"a user has only {left} items left that are not seen",
            "Choose a smaller K",
        )
    if isinstance(scores, Factors):
        return _factored_top(scores, side)
    masked = scores.detach().masked_fill(side.mask, -torch.inf)
    best = masked.topk(min(side.k + 1, masked.shape[1]), dim=1)
    index = best.indices[:, : side.k]
    equal = (best.values[:, 1:] == best.values[:, :-1]).any(1)
    if bool(equal.any()):  # which of the equal ones come first is left open
        index[equal] = _by_id(masked[equal], side.k)
    return index, _tied(best.values, side.k, scores.detach().abs().amax(1))


def _factored_top(scores: Factors, side: Side) -> tuple[Tensor, Tensor]:
    if scores.link is not None:
        parts = [top_and_ties(scores[part].dense(), tile) for part, tile in side.tiles(LEAST)]
        tops, ties = zip(*parts, strict=True)
        return torch.cat(tops), torch.cat(ties)
    k = min(side.k + 1, scores.shape[1])
    best, index = ops.catalogue_top(scores.users, scores.items, k, seen=side.lists)
    return index[:, : side.k], _tied(best, side.k, sizes(scores))


def sizes(scores: Factors) -> Tensor:
    """|h_i| max |e|, what products of factors are rounded by: [n]."""
    longest = torch.linalg.vector_norm(scores.items, dim=1, dtype=scores.users.dtype).amax()
    return scores.users.detach().norm(dim=1) * longest


def _tied(best: Tensor, k: int, largest: Tensor) -> Tensor:
    """Whether the k-th and the next of the best scores `[n, k + 1]` differ by rounding alone."""
    if best.shape[1] <= k:
        return torch.zeros(len(best), dtype=torch.bool, device=best.device)
    last, beyond = best[:, -2], best[:, -1]
    return (last - beyond <= ROUNDING * largest) & (beyond > -torch.inf)


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


def catalogue_softmax(scores: Tensor, seen: Tensor | Seen) -> Tensor:
    """Return softmax(scores) over the unseen items: [n, M], rows sum to 1, 0 where seen.

    A dozen metrics ask for the same one in turn: without gradients, that of the last small tensor
    is kept, and is not to be changed in place.
    """
    global _shared  # noqa: PLW0603
    seen = seen if isinstance(seen, Tensor) else seen.dense()
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


class _ByTiles(torch.autograd.Function):
    """Rows, or their sum, of a function of scores; backwards each tile is computed once more."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, given: tuple[Factors, Side, Rows, bool]) -> Tensor:
        scores, side, of, summed = ctx.given = given
        tiles = side.tiles(LEAST)
        found = (of(scores[part].dense(), tile) for part, tile in tiles)
        if not summed:
            return torch.cat(list(found))
        total = users.new_zeros(side.shape[1], dtype=torch.float64)
        for rows in found:
            total += rows.sum(0)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        scores, side, of, summed = ctx.given
        found = torch.empty_like(scores.users)
        for part, tile in side.tiles(LEAST):
            with torch.enable_grad():
                leaf = scores.users[part].detach().requires_grad_()
                rows = of(scores.of(leaf).dense(), tile)
            way = grad.to(rows.dtype).expand_as(rows) if summed else grad[part]
            (found[part],) = torch.autograd.grad(rows, leaf, way)
        return found, None


def by_tiles(of: Rows, scores: Factors, side: Side, *, summed: bool = False) -> Tensor:
    """What `of` gives for the matrix of scores: [n, S], or summed over prompts, [M] float64.

    The matrix is made for a few prompts at a time, and again for the gradient in the users.
    """

    def make() -> Tensor:
        apply: Any = _ByTiles.apply
        found: Tensor = apply(scores.users, (scores, side, of, summed))
        return found

    return scores.once((of, summed), side, make)


def _mean(scores: Factors, side: Side) -> Tensor:
    """Expectations of all of the items' values, and log Σ exp: [n, 2 + G + 1], in one pass."""

    def make() -> Tensor:
        values = side.values.to(scores.users)
        mean, lse = ops.catalogue_mean(scores.users, scores.items, values, seen=side.lists)
        return torch.cat([mean, lse[:, None]], 1)

    return scores.once("mean", side, make)


def expected(scores: Scores, side: Side, which: slice) -> Tensor:
    """Expectations under the catalogue softmax of some columns of `Side.values`: [n, C]."""
    if isinstance(scores, Tensor):
        p = catalogue_softmax(scores, side.mask)
        return p @ side.values[:, which].contiguous().to(p.dtype)
    if scores.link is None:
        return _mean(scores, side)[:, : side.values.shape[1]][:, which]
    return by_tiles(_every_value, scores, side)[:, which]


def _every_value(scores: Tensor, side: Side) -> Tensor:
    return expected(scores, side, slice(None))


def log_sum(scores: Factors, side: Side) -> Tensor:
    """log Σ exp of the scores of unseen items: [n, 1], of products alone."""
    return _mean(scores, side)[:, -1:]


def target_score(scores: Factors, side: Side) -> Tensor:
    """The target's score: [n, 1], of products alone."""
    return (scores.users * scores.items[side.target].to(scores.users)).sum(1, keepdim=True)


def probability(scores: Scores, side: Side) -> Tensor:
    """The target's probability under the catalogue softmax: [n, 1]."""
    if isinstance(scores, Tensor):
        return catalogue_softmax(scores, side.mask).gather(1, side.target[:, None])
    if scores.link is None:
        return (target_score(scores, side) - log_sum(scores, side)).exp()
    return by_tiles(probability, scores, side)


def softmax_rows(scores: Tensor, side: Side) -> Tensor:
    """The catalogue softmax [n, M]."""
    return catalogue_softmax(scores, side.mask)


def softmax_sum(scores: Factors, side: Side) -> Tensor:
    """Σ over prompts of the catalogue softmax: [M] float64, of products alone."""

    def make() -> Tensor:
        ones = scores.users.new_ones(len(scores), 1)
        return ops.catalogue_share(scores.users, scores.items, ones, seen=side.lists)

    return scores.once("sum", side, make)[:, 0].double()


def softmax_product(scores: Factors, side: Side, way: Tensor) -> Tensor:
    """Expectations of one value `way` [M] of the items: [n], of products alone."""
    given = way.to(scores.users)[:, None]
    return ops.catalogue_mean(scores.users, scores.items, given, seen=side.lists)[0][:, 0]
