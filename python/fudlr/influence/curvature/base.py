"""What every curvature offers: products with a symmetric d × d matrix that is never formed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from fudlr.common.batches import Batches, Source
from fudlr.common.errors import DataError

Forward = Callable[[Any, Any], Any]
Loss = Callable[[Any, Any], Tensor]


class GramRows(Protocol):
    """Rows of gradients that can multiply with their own Gram; the store's rows do."""

    @property
    def n(self) -> int:
        """Number of samples."""
        ...

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, d]`."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a curvature can be made of; each takes what it needs (`CURVATURES[name].make`).

    Attributes:
        engine: `fudlr_ext.Engine`, at the adapter where the curvature is wanted.
        forward, loss: The engine's callables.
        batches: The samples.
        rows: Their gradients at θ*.
        weights: `[n]`, for instance 1 − m for the curvature of what is kept; ones where None.
        terms: T `[n]`, of how many terms each sample's loss is the mean, such as a title's tokens;
            one each where None.
    """

    engine: Any
    forward: Forward
    loss: Loss
    batches: Batches
    rows: GramRows
    weights: Tensor | None = None
    terms: Tensor | None = None

    @property
    def of_squares(self) -> Tensor | None:
        """w_i T_i `[n]`, the weights of g_i g_iᵀ in a Fisher matrix; ones where None.

        The T gradients of a mean's terms are uncorrelated where labels are the model's own, so
        that E g gᵀ is the sum of their squares over T², and the mean's curvature the sum over T.
        """
        if self.terms is None or self.weights is None:
            return self.weights if self.terms is None else self.terms
        return self.weights * self.terms.to(self.weights)


class Curvature(Protocol):
    """A symmetric matrix H₀ [d, d] in place of the mean loss's Hessian.

    Neither the loss's own λ nor any damping is part of it: a solver adds both together, once, as
    one absolute number, H = H₀ + damping · I.
    """

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        ...


class Kind(Protocol):
    """A class of curvatures as the table knows it."""

    semidefinite: bool
    """Whether vᵀ H₀ v ≥ 0 for every v, so that any damping above 0 makes H positive definite."""
    couples_layers: bool
    """Whether entries between layers are kept. Without them every layer supplies the whole shift
    on its own: such a curvature may rank samples, and its update has to be rescaled."""
    from_rows: bool
    """Whether it is a product with rows of gradients, so that sketches of them serve too."""

    def make(self, parts: Parts) -> Curvature:
        """The curvature of these parts."""
        ...


BatchProduct = Callable[[Forward, Loss, Any, Tensor], Tensor]


def mean_product(
    batch_product: BatchProduct, forward: Forward, loss: Loss, batches: Batches, vectors: Tensor
) -> Tensor:
    """Mean over samples of a product that an engine gives as the mean over each batch.

    Args:
        batch_product: `(forward, loss, batch, vectors) -> [k, d]`, a mean over the batch.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`.
        batches: The samples; batches may differ in size and weigh by it.
        vectors: `[k, d]`.

    Returns:
        `[k, d]`; memory does not grow with the number of samples.
    """
    if vectors.dim() != 2:
        raise DataError(
            "a curvature was to be multiplied with vectors [k, d]",
            f"a tensor of shape {tuple(vectors.shape)}",
            "A single vector is a matrix with one row: v[None]",
        )
    total = torch.zeros_like(vectors)
    for batch, rows in batches:
        total.add_(batch_product(forward, loss, batch, vectors), alpha=rows.stop - rows.start)
    return total / batches.n


def weighted(
    forward: Forward, loss: Loss, batches: Batches, weights: Tensor | None
) -> tuple[Forward, Loss, Batches]:
    """The same three for the losses weights_i ℓ_i, `weights` [n]: a batch then carries its part."""
    if weights is None:
        return forward, loss, batches
    given = weights

    def source() -> Any:
        for batch, rows in batches:
            yield batch, given[rows]

    def inner(model: Any, batch: Any) -> Any:
        return forward(model, batch[0])

    def scaled(outputs: Any, batch: Any) -> Tensor:
        losses = loss(outputs, batch[0])
        return losses * batch[1].to(losses)

    return inner, scaled, Batches(source, batches.sizes)


class EngineCurvature:
    """Of the mean loss, by products that an engine computes anew, batch by batch.

    Args:
        engine: Gives the class's `operation`, a mean over a batch.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`.
        batches: The samples.
        weights: `[n]`, for instance 1 − m for the curvature of what is kept; ones by default.
    """

    couples_layers = True
    from_rows = False
    operation: ClassVar[str]
    """Name of the engine's `(forward, loss, batch, vectors [k, d]) -> [k, d]`."""

    def __init__(
        self,
        engine: Any,
        forward: Forward,
        loss: Loss,
        batches: Batches | Source,
        weights: Tensor | None = None,
    ) -> None:
        self._engine = engine
        forward, loss, self._batches = weighted(forward, loss, Batches.of(batches), weights)
        self._face = (forward, loss)

    @classmethod
    def make(cls, parts: Parts) -> Self:
        """At the adapter that the engine holds."""
        return cls(parts.engine, parts.forward, parts.loss, parts.batches, parts.weights)

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        product: BatchProduct = getattr(self._engine, self.operation)
        return mean_product(product, *self._face, self._batches, vectors)
