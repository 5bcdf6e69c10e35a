"""True Fisher by labels drawn from the model, with the entries between layers.

    H₀ = (1/n) Σ_i E_{y ~ p(·|x_i)} [∇ℓ_i(y) ∇ℓ_i(y)ᵀ],   estimated with a few y drawn for each i

Its expectation equals the GGN's matrix for losses that are −log p (Martens 2020, JMLR 21(146)); the
empirical Fisher takes y from the data instead. Labels are drawn anew on each pass from the same
seed, so that nothing is stored and each product is with the same matrix.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fudlr.common.batches import Batches, Source
from fudlr.common.errors import UsageError
from fudlr.influence.curvature.base import Draw, Forward, Loss, Parts, mean_product, weighted


class FisherEngine(Protocol):
    """What this curvature asks of an engine."""

    def fisher_vp(self, forward: Forward, loss: Loss, batch: Any, vectors: Tensor) -> Tensor:
        """Products with the mean of g_i g_iᵀ over the batch, `[k, d]`."""
        ...


class TrueFisher:
    """(1/(n·draws)) Σ g̃ g̃ᵀ from gradients at drawn labels.

    Args:
        engine: Gives `fisher_vp`, a mean over a batch.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`, −log p of the batch's labels.
        batches: The samples.
        weights: `[n]`; ones by default.
        draw: `(outputs, batch, generator) -> batch` with labels drawn from p.
        draws: Labels for each sample; each costs a pass.
        seed: Decides the labels, with the number of the batch and of the draw.
    """

    name = "true_fisher"
    semidefinite = True
    couples_layers = True

    def __init__(
        self,
        engine: FisherEngine,
        forward: Forward,
        loss: Loss,
        batches: Batches | Source,
        weights: Tensor | None = None,
        *,
        draw: Draw,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        if draws < 1:
            raise UsageError(
                "the true Fisher draws labels for each sample", f"{draws}", "Draw at least one"
            )
        self._engine, self._draws = engine, draws
        # g_i enters squared: √w in the loss is w in the matrix.
        root = None if weights is None else weights.sqrt()
        forward, loss, self._batches = weighted(forward, loss, Batches.of(batches), root)
        self._forward, self._loss, self._draw, self._seed = forward, loss, draw, seed
        self._inside = root is not None

    @classmethod
    def make(cls, parts: Parts) -> TrueFisher:
        """With one draw a sample.

        Raises:
            UsageError: The recommender's loss is of no distribution that labels can be drawn from.
        """
        if parts.draw is None:
            raise UsageError(
                "the true Fisher was to be computed",
                "this recommender gives no distribution of labels to draw from",
                "Use ggn, which is its expectation, or empirical_fisher",
            )
        face = (parts.engine, parts.forward, parts.loss, parts.batches)
        return cls(*face, parts.of_squares, draw=parts.draw, seed=parts.seed)

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        total = torch.zeros_like(vectors)
        for number in range(self._draws):
            total += mean_product(
                self._engine.fisher_vp, self._numbered, self._drawn, self._seeded(number), vectors
            )
        return total / self._draws

    def _seeded(self, number: int) -> Batches:
        def source() -> Any:
            for count, (batch, _) in enumerate(self._batches):
                yield batch, (self._seed * 1_000_003 + number) * 1_000_003 + count

        return Batches(source, self._batches.sizes)

    def _numbered(self, model: Any, batch: Any) -> Any:
        return self._forward(model, batch[0])

    def _drawn(self, outputs: Any, batch: Any) -> Tensor:
        inner, seed = batch
        plain = outputs if isinstance(outputs, tuple) else (outputs,)
        detached = tuple(tensor.detach() for tensor in plain)
        given = detached if isinstance(outputs, tuple) else detached[0]
        generator = torch.Generator(device=detached[0].device).manual_seed(seed)
        if not self._inside:
            return self._loss(outputs, self._draw(given, inner, generator))
        own, weights = inner
        return self._loss(outputs, (self._draw(given, own, generator), weights))
