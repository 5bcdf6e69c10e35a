"""What sketches leave out of a training, from gradients that are taken again.

Sketches keep the directions that samples have in common. What a removed sample taught of itself
lies mostly outside of them, and so does the curvature that answers it. With P = 1 − SᵀS, a step
without the samples m lacks

    P Σ m_i u_i g_i   and   P F P δ ≈ ρ P δ,   ρ = mean T_j (g_jᵀ P δ)² / ‖P δ‖².

The training is cut into `SPANS` parts of as many steps. In each, the first is the mean over its
steps, of gradients at the parameters a quarter into it: they change slowly, and Adam's means reach
over more steps than one. ρ is measured at that step, over some samples, and holds until the next
part's: most of δ comes about in a training's first steps, so that the middle would be late. Outside
of S the curvature is that of many samples, a little of each: one number, right in size along the
shift, answers as the whole does, where products with a few samples' gradients are mostly chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from itertools import pairwise
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from fudlr.influence.unroll.training import Training

SPANS = 4
"""Parts of a training. Two are too few for what the parameters change; five change little."""
PROBED = 64
"""Samples that ρ is the mean over."""
Method = TypeVar("Method", bound=Callable[..., Any])


class Exact(Protocol):
    """Gradients g_i of samples, by their places `[b]`, taken at θ `[d]`."""

    def sums(self, theta: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Σ w_i g_i `[k, d]` for weights `[k, b]`."""
        ...

    def squares(self, theta: Tensor, index: Tensor, vectors: Tensor) -> Tensor:
        """Mean T_i (g_iᵀ v)² `[k]` for v `[k, d]`."""
        ...


def spans(count: int) -> list[range]:
    """The parts of a training of so many steps."""
    ends = [count * part // SPANS for part in range(SPANS + 1)]
    return [range(*pair) for pair in pairwise(ends) if pair[0] < pair[1]]


def quarter(span: range) -> int:
    """The step whose parameters stand for a part's."""
    return span[len(span) // 4]


class LeftOut:
    """What sketches leave out of a training without some samples.

    Args:
        training: Its steps.
        exact: Takes gradients.
        masks: Gives m `[k, b]` of samples by their places.
        n: The training samples.
        thetas: The training's parameters `[d]` a quarter into each part, by the step.
        order: Of vectors that are asked for, as places in those of `exact`.
        outside: P v of vectors in that order, for S of a segment.
    """

    def __init__(
        self,
        training: Training,
        exact: Exact,
        masks: Callable[[Tensor], Tensor],
        *,
        n: int,
        thetas: Mapping[int, Tensor],
        order: Tensor,
        outside: Callable[[int, Tensor], Tensor],
    ) -> None:
        self._training, self._exact, self._masks, self._thetas = training, exact, masks, thetas
        self._n, self._order, self._outside = n, order, outside
        self._spans = {span.start: span for span in spans(training.count)}
        self._parts, self._ratio = dict[int, Tensor](), torch.zeros(())

    def at(self, t: int, segment: int, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """P Σ m_i u_i g_i and ρ P δ, `[k, d]` each, for step `t`, the next one, and δ `shifts`; P
        is that of the step's own sketches, which have the rest."""
        if t in self._spans:
            self._enter(self._spans[t])
        if segment not in self._parts:
            self._parts[segment] = self._outside(segment, self._lost)
        beyond = self._outside(segment, shifts)
        if t in self._thetas:
            self._ratio = self._measured(t, beyond)
        return self._parts[segment], self._ratio * beyond

    def _enter(self, span: range) -> None:
        at, steps = quarter(span), [self._training.composition(step) for step in span]
        ids = torch.cat([own for own, _ in steps])
        gone = self._masks(ids) * torch.cat([shares for _, shares in steps]) / len(span)
        some = gone.any(0).nonzero()[:, 0]
        index, place = ids[some].unique(return_inverse=True)
        weights = gone.new_zeros(len(gone), len(index)).index_add_(1, place, gone[:, some])
        self._lost, self._parts = weights.new_zeros(len(weights), len(self._order)), {}
        if len(index):
            self._lost = self._exact.sums(self._thetas[at], index, weights)[:, self._order]

    def _measured(self, t: int, beyond: Tensor) -> Tensor:
        """ρ `[k, 1]` at step `t` along P δ."""
        draw = torch.randperm(self._n, generator=torch.Generator().manual_seed(t))
        length = beyond.norm(dim=1, keepdim=True).clamp(min=torch.finfo(beyond.dtype).tiny)
        flat = torch.empty_like(beyond)
        flat[:, self._order] = beyond / length
        return self._exact.squares(self._thetas[t], draw[:PROBED], flat)[:, None]


def unwatched(method: Method) -> Method:
    """The method without autograd's notes of every operation, a fifth of its time at small d."""

    @wraps(method)
    def run(*given: Any) -> Tensor:
        with torch.inference_mode():
            found: Tensor = method(*given)
        return found.clone()

    return cast(Method, run)
