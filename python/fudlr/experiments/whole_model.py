"""All parameters of a model in the place of an adapter's, for what asks an engine for little.

    g_i = ∇ℓ_i over every weight, embeddings and norms included, by one backward pass a sample

It has those methods of `fudlr_ext.Engine` that training, metric gradients and rows in memory call.
A backward pass a sample is simple and slow; it is here to compare parameter sets, for small models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fudlr.common.errors import UsageError
from fudlr.config import merge
from fudlr.run import Run
from fudlr.run.base import load_base, recommender_kind
from fudlr.verify.retraining import Job, retrain
from fudlr_ext import Engine

Forward = Callable[[Any, Any], Any]
Loss = Callable[[Any, Any], Tensor]


class WholeModel:
    """Every parameter of `model` as one vector [d], in the order of `named_parameters`.

    Args:
        model: A causal LM without an adapter; shared weights count once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        named = dict(model.named_parameters())
        self.names = list(named)
        self._parameters = list(named.values())
        model.requires_grad_()

    @property
    def d(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self._parameters)

    def parameters(self) -> list[nn.Parameter]:
        """Return the model's own parameters, in flat order."""
        return list(self._parameters)

    def theta(self) -> Tensor:
        """Return a copy of the parameters as one vector [d]."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters])

    def load(self, vector: Tensor) -> None:
        """Write the vector [d] into the model."""
        if vector.shape != (self.d,) or not bool(vector.isfinite().all()):
            raise UsageError(
                "a model's parameters were to be replaced",
                f"the vector is {list(vector.shape)}, or not finite",
                f"Give {self.d} finite numbers",
            )
        with torch.no_grad():
            parts = vector.split([p.numel() for p in self._parameters])
            for parameter, part in zip(self._parameters, parts, strict=True):
                parameter.copy_(part.view_as(parameter))

    def sample_grads(self, forward: Forward, loss: Loss, batch: Any) -> Tensor:
        """Return the per-sample gradients g_i, [n, d]."""
        n = len(next(iter(batch.values())))
        rows = torch.empty(n, self.d)
        for i in range(n):
            one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
            losses = loss(forward(self.model, one), one)
            rows[i] = self._flat(torch.autograd.grad(losses.sum(), self._parameters))
        return rows

    def deferred_vjp(self, forward: Forward, batch: Any) -> WholeVjp:
        """Run `forward` and keep its graph."""
        return WholeVjp(self, forward(self.model, batch))

    def _flat(self, gradients: tuple[Tensor | None, ...]) -> Tensor:
        return torch.cat(
            [
                torch.zeros(p.numel()) if g is None else g.reshape(-1)
                for g, p in zip(gradients, self._parameters, strict=True)
            ]
        )


class WholeVjp:
    """One batch's outputs and the way back from them to all parameters."""

    held = 0
    """Bytes that autograd does not know of."""

    def __init__(self, whole: WholeModel, outputs: Any) -> None:
        self._whole = whole
        self._graph = outputs if isinstance(outputs, tuple) else (outputs,)
        self.outputs: tuple[Tensor, ...] = tuple(tensor.detach() for tensor in self._graph)

    def vjp(self, cotangents: tuple[Tensor, ...]) -> Tensor:
        """Return Σ cotangent · ∂outputs/∂θ for k cotangents of each output, [k, d]."""
        wanted = [i for i, output in enumerate(self._graph) if output.requires_grad]
        found = [
            torch.autograd.grad(
                [self._graph[i] for i in wanted],
                self._whole.parameters(),
                grad_outputs=[cotangents[i][j] for i in wanted],
                retain_graph=True,
                allow_unused=True,
            )
            for j in range(len(cotangents[0]))
        ]
        return torch.stack([self._whole._flat(gradients) for gradients in found])


def whole_run(run: Run, learning_rate: float, kept: Path) -> Run:
    """The same data, base, order and λ, with all parameters trained instead of the adapter's.

    Args:
        run: In a folder, from which the base is read.
        learning_rate: Of the training.
        kept: Where the training is kept, as a retraining.
    """
    assert run.folder is not None
    options = {"train.learning_rate": learning_rate, "train.through": "peft", "record.ride": False}
    config = merge(run.config, options)
    model = load_base(run.folder / "base", config.model.dtype)
    kind = recommender_kind(config)
    recommender = kind.create(model, None, run.interactions, config, run.recommender.record())
    engine = cast(Engine, WholeModel(model))
    start = engine.theta()
    whole = replace(
        run,
        config=config,
        recommender=recommender,
        engine=engine,
        start=start,
        theta=start,
        folder=None,
    )
    (done,) = retrain(whole, [Job("train all parameters")], kept)
    engine.load(done.theta)
    model.eval()
    return replace(whole, theta=done.theta, train_seconds=done.seconds, losses=done.losses)
