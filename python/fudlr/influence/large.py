"""The closed form of a store whose rows, scores and mask no process holds.

    x = (Σ_i g_i g_iᵀ / n + damping)⁻¹ ∇F,   s_i = g_iᵀ x / n,
    m = 1 for the lowest `budget` share of λ_fair s/std(s) + λ_acc a/std(a) + λ_spa below 0,
    θ = θ* + (Σ_i g_i g_iᵀ / n + damping)⁻¹ Σ_i m_i g_i / n

as `pipeline.request` has it, but nothing is kept of a sample: each rank reads the windows of the
store that are its share, at each pass again, and the ranks exchange sums of sketches and counts of
scores. A request takes a pass for each step of its two solves and six to eight beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fudlr.common.parallel import ranks
from fudlr.gradients.store import Store
from fudlr.gradients.store.reader import WINDOW_BYTES, read_ahead
from fudlr.gradients.store.shards import decode, row_bytes
from fudlr.influence.scores import ACCURACY, FAIRNESS, check_spread, combined
from fudlr.influence.solvers import make_solver, sampled_preconditioner
from fudlr.influence.threshold import Scored, Threshold, select
from fudlr.influence.update import Update, finish
from fudlr_ext.ops import row_dots, row_gram, row_sums

ROWS = 2**17
"""Of a window, at most: where rows are short, what is made of them is as large as they are."""
SAMPLED = 512
"""Rows that the solves' preconditioner is made from."""


class Share:
    """This rank's windows of a store's last epoch, in which its rows lie.

    Args:
        store: All of it.
        window_bytes: Of rows, at most in memory at a time; and as many are read ahead.
    """

    def __init__(self, store: Store, window_bytes: int = WINDOW_BYTES) -> None:
        self.store, self.n, self._here = store, store.n, ranks()
        windows = list(store.windows(min(window_bytes, ROWS * row_bytes(store.dim, store.dtype))))
        self._own = windows[self._here.part(len(windows))]
        self._all = len(windows)

    def rows(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Ids `[b]`, rows `[b, p]` and their scales, window by window."""
        reads = read_ahead(window.read for window in self._own)
        for window, (rows, scales) in zip(self._own, reads, strict=True):
            yield self.store.names(window.places), rows, scales

    def product(self, vectors: Tensor) -> Tensor:
        """Σ g gᵀ v / n for each row v of `vectors` `[k, p]`; of all ranks."""
        sums = torch.zeros(vectors.shape, dtype=torch.float64)
        for _, rows, scales in self.rows():
            sums += row_gram(rows, vectors.float().contiguous(), None, scales)[1]
        self._here.sum(sums)
        return (sums / self.n).to(vectors)

    def sample(self, count: int) -> Tensor:
        """About `count` rows of all ranks, spread over the store."""
        each = -(-count // self._all)
        found = [torch.empty(0, self.store.dim)]
        for _, rows, scales in self.rows():
            at = torch.linspace(0, len(rows) - 1, min(each, len(rows))).long()
            found.append(decode(rows[at], None if scales is None else scales[at]))
        return self._here.cat(torch.cat(found))


@dataclass(frozen=True)
class Removal:
    """What `remove` found.

    Attributes:
        threshold: Which samples are removed, and how many.
        update: The adapter without them.
        scored: Gives ids and scores `[b]` of this rank's samples, window by window.
    """

    threshold: Threshold
    update: Update
    scored: Scored

    def removed(self) -> Iterator[Tensor]:
        """Ids of this rank's samples that are removed, window by window."""
        return (ids[self.threshold.of(ids, scores)] for ids, scores in self.scored())


def remove(
    store: Store,
    theta: Tensor,
    fairness: Tensor,
    accuracy: Tensor | None = None,
    *,
    damping: float,
    budget: float,
    lambda_fair: float = 1.0,
    lambda_acc: float = 1.0,
    lambda_spa: float = 0.0,
    max_steps: int = 20,
    tolerance: float = 0.01,
    window_bytes: int = WINDOW_BYTES,
) -> Removal:
    """Take the samples that cause an unfairness out of the adapter. A collective of all ranks.

    Args:
        store: Rows of all n training samples, whose losses are of one term each.
        theta: The trained adapter `[d]`.
        fairness: Gradient of the unfairness `[d]`, lower is better.
        accuracy: Of the validation loss `[d]`; None where it has no weight.
        damping: See `solvers`.
        budget: Largest share of the samples to remove.
        lambda_fair: Weight of fairness; see `scores.scores`.
        lambda_acc: Weight of accuracy.
        lambda_spa: Price of a removal.
        max_steps: Of a solve; see `solvers.solve_cg`.
        tolerance: Of a solve.
        window_bytes: Of rows, at most in memory at a time; and as many are read ahead.

    Raises:
        StoreError: A file of the store is damaged.
        UsageError, NumericalError: As solver, scores and threshold raise.
    """
    share, here, projection = Share(store, window_bytes), ranks(), store.projection()
    wanted = [(lambda_fair, fairness, FAIRNESS), (lambda_acc, accuracy, ACCURACY)]
    used = [(weight, vector, name) for weight, vector, name in wanted if vector is not None]
    conditioned = sampled_preconditioner(share.sample(SAMPLED), damping)
    options = {"max_steps": max_steps, "tolerance": tolerance, "preconditioner": conditioned}
    solve = make_solver(share, damping, "cg", **options)
    x = solve(projection.project(torch.stack([vector for _, vector, _ in used]))).x.float()

    def influences() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        for ids, rows, scales in share.rows():
            yield ids, row_dots(rows, x, scales) / share.n, rows, scales

    sums, largest = torch.zeros(2, len(x), dtype=torch.float64), torch.zeros(len(x))
    for _, values, *_ in influences():
        sums += torch.stack([values.double().sum(0), values.double().square().sum(0)])
        largest = torch.maximum(largest, values.abs().max(0).values)
    here.sum(sums)
    mean, square = sums / share.n
    spreads = (square - mean.square()).clamp_min(0).sqrt().tolist()
    sizes = torch.tensor(here.gather(largest.tolist())).max(0).values.tolist()
    for (_, _, name), spread, size in zip(used, spreads, sizes, strict=True):
        check_spread(spread, size, x.dtype, share.n, name)

    def score(values: Tensor) -> Tensor:
        start = torch.full((len(values),), lambda_spa)
        weights = [weight for weight, *_ in used]
        return combined(zip(weights, values.T, spreads, strict=True), start)

    def scored() -> Iterator[tuple[Tensor, Tensor]]:
        return ((ids, score(values)) for ids, values, *_ in influences())

    threshold = select(scored, budget)
    right = torch.zeros(1, store.dim, dtype=torch.float64)
    for ids, values, rows, scales in influences():
        chosen = threshold.of(ids, score(values))
        if bool(chosen.any()):
            right += row_sums(rows, chosen[None].float(), scales)
    here.sum(right)
    solution = solve((right / share.n).to(theta))
    return Removal(threshold, finish(theta, projection.lift(solution.x)[0], solution), scored)
