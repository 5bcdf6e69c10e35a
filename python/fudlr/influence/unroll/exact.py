"""What sketches leave out of a step, from gradients that are taken again.

Sketches keep the directions that samples have in common. What a removed sample taught of itself
lies mostly outside of them, and so does the curvature that answers it. So gradients are taken again
at every step, or in long trainings every few steps, of the removed samples and of some kept ones C,
drawn anew, and what sketches leave out of them counts as often:

    Σ m_i u_i (g_i − Sᵀ s_i)   and   mean_C T_j (g_j g_jᵀ − Sᵀ s_j s_jᵀ S) δ

Samples come in another order every epoch, and C is drawn: both sums over the training are unbiased.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

FEW = 16
"""Kept samples of a step whose gradients are taken again; more cost more and change little."""
EPOCHS = 4
"""In so many at least each sample's gradient is taken again on average; in fewer, chance decides
what is left of a sample. Of a training of 10 epochs every second step is."""
Method = TypeVar("Method", bound=Callable[..., Any])

Exact = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Gradients taken again, of samples by their places `[b]` at θ `[d]`: Σ w_i g_i `[k, d]` for
weights w `[k, b]`, and Σ c_i T_i g_i g_iᵀ v `[k, d]` for c `[b]` and v `[k, d]`; called with θ,
places, w, c, v."""


class Chosen(NamedTuple):
    """What is taken again of a step, as places within it.

    Attributes:
        removed: The removed samples.
        few: C.
        times: How often what sketches leave out of them counts.
    """

    removed: Tensor
    few: Tensor
    times: int

    @classmethod
    def of(cls, t: int, gone: Tensor, epochs: int) -> Chosen | None:
        """For step `t` of so many epochs and m_i u_i `[k, b]`; None where nothing is. The draw
        depends on `t` and on which samples are removed."""
        every = max(1, epochs // EPOCHS)
        if t % every:
            return None
        lost = gone.any(0)
        removed, rest = lost.nonzero()[:, 0], (~lost).nonzero()[:, 0]
        drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(t))
        return cls(removed, rest[drawn[:FEW]], every)

    def again(
        self, exact: Exact, theta: Tensor, ids: Tensor, gone: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Σ m_i u_i g_i and mean_C T_j g_j g_jᵀ v, `[k, d]` each, in one pass.

        Args:
            exact: Takes gradients.
            theta: The step's parameters `[d]`.
            ids: Its samples `[b]`.
            gone: m_i u_i `[k, b]`.
            vectors: v `[k, d]`.
        """
        at = torch.cat([self.removed, self.few] if bool(vectors.any()) else [self.removed])
        if not len(at):
            return torch.zeros_like(vectors), torch.zeros_like(vectors)
        share = torch.zeros(len(at), dtype=vectors.dtype)
        share[len(self.removed) :] = 1 / max(1, len(self.few))
        weights = gone[:, at]
        weights[:, len(self.removed) :] = 0
        return exact(theta, ids[at], weights, share, vectors)


def unwatched(method: Method) -> Method:
    """The method without autograd's notes of every operation, a fifth of its time at small d."""

    @wraps(method)
    def run(*given: Any) -> Tensor:
        with torch.inference_mode():
            found: Tensor = method(*given)
        return found.clone()

    return cast(Method, run)
