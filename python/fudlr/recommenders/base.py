"""What every recommender offers: batches, outputs, one loss a sample, scores over the catalogue.

The protocol has four steps, so that the engine, the metrics and the training each take the part
they need and nothing else:

    batch = recommender.collate(samples)             # tensors; the first dimension is the sample
    outputs = recommender.forward(model, batch)      # what the engine differentiates
    recommender.loss(outputs, batch)                 # [n], ℓ_i, never divided by the batch
    recommender.item_scores(outputs, batch)          # [n, M], higher is better; differentiable
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fudlr.data.interactions import Samples

Batch = dict[str, Tensor]


class Recommender(ABC):
    """A causal LM that scores a catalogue of M items for a user's history.

    Args:
        model: The Hugging Face model, with or without a peft adapter.
        n_items: M, the size of the catalogue.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, n_items: int) -> None:
        self.model = model
        self.n_items = n_items

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @abstractmethod
    def collate(self, samples: Samples) -> Batch:
        """The samples as tensors on the model's device; each tensor's first dimension is n."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The outputs that loss and scores hang on; the only call that runs the model."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """ℓ_i [n]: each sample's own loss, the mean over its answer tokens."""

    @abstractmethod
    def item_scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Scores over the catalogue, [n, M]; nothing is excluded here."""

    def batches(self, samples: Samples, size: int) -> Iterator[Batch]:
        """`samples` in their order, `size` at a time."""
        for start in range(0, len(samples), size):
            yield self.collate(samples.take(np.arange(start, min(start + size, len(samples)))))

    def evaluate(self, samples: Samples, size: int = 256) -> tuple[Tensor, Tensor]:
        """Scores [n, M] and losses [n] of `samples`, in evaluation mode and without gradients."""
        was_training = self.model.training
        self.model.eval()
        scores, losses = [], []
        try:
            with torch.no_grad():
                for batch in self.batches(samples, size):
                    outputs = self.forward(self.model, batch)
                    scores.append(self.item_scores(outputs, batch).float())
                    losses.append(self.loss(outputs, batch).float())
        finally:
            self.model.train(was_training)
        if not scores:
            empty = torch.empty(0, device=self.device)
            return empty.reshape(0, self.n_items), empty
        return torch.cat(scores), torch.cat(losses)
