"""What sketches leave out of a step, from gradients that are taken again.

Sketches keep the directions that samples have in common. What a removed sample taught of itself
lies mostly outside of them, and so does the curvature that answers it. So the removed samples'
gradients are whole, and the curvature is put right by some kept samples C of each step, drawn anew:

    Σ m_i u_i g_i   and   mean_C T_j (g_j g_jᵀ − Sᵀ s_j s_jᵀ S) δ

the second an unbiased estimate of what sketches miss of the same mean over all samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

FEW = 16
"""Kept samples of a step whose gradients are taken again; more cost more and change little."""
Method = TypeVar("Method", bound=Callable[..., Any])


class LeftOut(NamedTuple):
    """Of a step, `[k, d]` each: Σ m_i u_i g_i, and mean_C T_j g_j g_jᵀ v."""

    gone: Tensor
    curved: Tensor


class Exact(NamedTuple):
    """Gradients at other parameters.

    Attributes:
        sums: Σ w_i g_i `[k, d]` at θ `[d]`, of samples by their places `[b]`, for weights `[k, b]`.
        products: mean T_i g_i g_iᵀ v `[k, d]` at θ, of samples by their places, for v `[k, d]`.
    """

    sums: Callable[[Tensor, Tensor, Tensor], Tensor]
    products: Callable[[Tensor, Tensor, Tensor], Tensor]

    def left_out(
        self, t: int, theta: Tensor, ids: Tensor, weights: Tensor, vectors: Tensor
    ) -> tuple[Tensor, LeftOut]:
        """C, as places within the step, and what is taken again.

        Args:
            t: Of the step; the draw depends on it alone.
            theta: Its parameters `[d]`.
            ids: Its samples `[b]`.
            weights: m_i u_i `[k, b]`.
            vectors: v `[k, d]`.
        """
        removed = weights.any(0)
        some, rest = removed.nonzero()[:, 0], (~removed).nonzero()[:, 0]
        gone, curved = torch.zeros_like(vectors), torch.zeros_like(vectors)
        drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(t))
        few = rest[drawn[:FEW]]
        if len(some):
            gone = self.sums(theta, ids[some], weights[:, some])
        if len(few) and bool(vectors.any()):
            curved = self.products(theta, ids[few], vectors)
        return few, LeftOut(gone, curved)


def unwatched(method: Method) -> Method:
    """The method without autograd's notes of every operation, a fifth of its time at small d."""

    @wraps(method)
    def run(*given: Any) -> Tensor:
        with torch.inference_mode():
            found: Tensor = method(*given)
        return found.clone()

    return cast(Method, run)
