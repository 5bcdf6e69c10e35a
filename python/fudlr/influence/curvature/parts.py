"""What a curvature is made of, and what every one offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fudlr.common.batches import Batches
from fudlr.gradients.matrix import Forward, GradientMatrix, Loss


@dataclass(frozen=True)
class Parts:
    """What a curvature can be made of; each takes what it needs.

    Attributes:
        rows: The samples' gradients at θ*.
        weights: `[n]`, for instance 1 − m for the curvature of what is kept; ones where None.
        terms: T `[n]`, of how many terms each sample's loss is the mean, such as a title's tokens;
            one each where None.
        engine: `fudlr_ext.Engine`, at the adapter where the curvature is wanted.
        forward, loss: The engine's callables.
        batches: The samples.
    """

    rows: GradientMatrix
    weights: Tensor | None = None
    terms: Tensor | None = None
    engine: Any = None
    forward: Any = None
    loss: Any = None
    batches: Any = None

    @property
    def of_squares(self) -> Tensor | None:
        """w_i T_i `[n]`, the weights of g_i g_iᵀ in a Fisher matrix; ones where None.

        The T gradients of a mean's terms are uncorrelated where labels are the model's own, so
        that E g gᵀ is the sum of their squares over T², and the mean's curvature the sum over T.
        """
        if self.terms is None or self.weights is None:
            return self.weights if self.terms is None else self.terms
        return self.weights * self.terms.to(self.weights)

    def face(self, weights: Tensor | None) -> tuple[Forward, Loss, Batches]:
        """Forward, loss and batches for the losses weights_i ℓ_i: a batch then carries its part."""
        forward, loss, batches = self.forward, self.loss, self.batches
        if weights is None:
            return forward, loss, batches

        def source() -> Iterator[Any]:
            for batch, rows in batches:
                yield batch, weights[rows]

        def scaled(outputs: Any, batch: Any) -> Tensor:
            losses = loss(outputs, batch[0])
            return losses * batch[1].to(losses)

        return lambda model, batch: forward(model, batch[0]), scaled, Batches(source, batches.sizes)


class Curvature(Protocol):
    """A symmetric matrix H₀ [d, d] in place of the mean loss's Hessian.

    Neither the loss's own λ nor any damping is part of it: a solver adds both together, once, as
    one absolute number, H = H₀ + damping · I. Some have `inverse(rhs [k, d], damping)`, the closed
    form of (H₀ + damping · I)⁻¹ b for each row.
    """

    couples_layers: bool
    """Whether entries between layers are kept. Without them every layer supplies the whole shift
    on its own: such a curvature may rank samples, and its update has to be rescaled."""
    from_rows: bool
    """Whether it is a product with rows of gradients, so that sketches of them serve too."""

    def __init__(self, parts: Parts) -> None: ...

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        ...
