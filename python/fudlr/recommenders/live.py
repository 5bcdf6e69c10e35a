"""A recommender that is somebody's own functions over a data set of their own.

batch   = collate(rows)                 a mapping of tensors, the first dimension the sample
outputs = forward(model, batch)         what the engine differentiates
losses  = loss(outputs, batch)          [n], undivided
scores  = scores(model, batch)          [n, M] over the catalogue, differentiable
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fudlr.config import RunConfig
from fudlr.data.interactions import Interactions, Samples
from fudlr.data.rows import RowSamples
from fudlr.recommenders.base import Batch, Outputs, Recommender
from fudlr_ext import label_logits, label_loss
from fudlr_ext.labels import IGNORED

SCORING = "fudlr.scoring"
"""In a batch whose scores will be asked for."""


@dataclass(frozen=True)
class Face:
    """The functions; `forward` and `loss` are a causal language model's where not given."""

    collate: Callable[[list[Any]], Mapping[str, Any]]
    scores: Callable[[nn.Module, Any], Tensor]
    forward: Callable[[nn.Module, Any], Any] = label_logits
    loss: Callable[[Any, Any], Tensor] = label_loss


class Live(Recommender):
    """Recommends as the functions of a `Face` do.

    Args:
        model: The peft model.
        interactions: Name the items, in the order of the scores.
        config: Options of the run.
        face: The functions.
    """

    name: ClassVar[str] = "live"
    prompted: ClassVar[bool] = False

    def __init__(
        self, model: nn.Module, interactions: Interactions, config: RunConfig, face: Face
    ) -> None:
        super().__init__(model, None, interactions, config)
        self._face, self._probed = face, True  # scores are as their function makes them

    def _probe(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        return iter(())

    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """What `collate` makes of the rows, on the model's device."""
        assert isinstance(samples, RowSamples)
        made = dict(self._face.collate(samples.rows))
        on = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in made.items()}
        return {**on, SCORING: True} if scoring else on

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """What `forward` gives; for scoring the scores behind it."""
        given = {name: value for name, value in batch.items() if name != SCORING}
        found: Outputs = self._face.forward(model, given)
        if SCORING not in batch:
            return found
        parts = found if isinstance(found, tuple) else (found,)
        return (*parts, self._face.scores(model, given))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """What `loss` gives, [n]."""
        if SCORING in batch:
            parts = outputs[:-1]
            outputs = parts[0] if len(parts) == 1 else parts  # type: ignore[assignment]
        return self._face.loss(outputs, batch)

    def terms(self, samples: Samples) -> Tensor:
        """Label tokens of every sample, where the loss is the mean over them, [n]."""
        if self._face.loss is not label_loss:
            return super().terms(samples)
        counts = [
            (batch["labels"][:, 1:] != IGNORED).sum(1) for batch in self.batches(samples, 256)
        ]
        return torch.cat(counts).float().cpu() if counts else torch.ones(0)

    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """What `scores` gave, [n, M]."""
        return outputs[-1]
