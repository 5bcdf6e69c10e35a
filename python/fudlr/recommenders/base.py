"""What every recommender offers: batches, outputs, one loss a sample, scores over the catalogue.

The protocol has four steps, so that the engine, the metrics and the training each take the part
they need and nothing else:

    batch = recommender.collate(samples)             # tensors; the first dimension is the sample
    outputs = recommender.forward(model, batch)      # what the engine differentiates
    recommender.loss(outputs, batch)                 # [n], ℓ_i, never divided by the batch
    recommender.item_scores(outputs, batch)          # [n, M], higher is better; differentiable

Where scores cost more than the loss (a tree of titles), a batch holds what scores need only if it
was collated with `scoring=True`; its outputs are then a pair, the loss's and the scores'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from fudlr.config import RunConfig
from fudlr.data.interactions import Interactions, Samples
from fudlr.progress import PATIENCE, track

Batch = dict[str, Any]
Outputs = Tensor | tuple[Tensor, Tensor]


class Recommender(ABC):
    """A causal LM that scores a catalogue of M items for a user's history.

    Args:
        model: The Hugging Face model, with or without a peft adapter.
        n_items: M, the size of the catalogue.
    """

    name: ClassVar[str]
    prompted: ClassVar[bool] = True
    """Whether it writes prompts in words, for which it needs the model's tokenizer."""

    def __init__(self, model: nn.Module, n_items: int) -> None:
        self.model = model
        self.n_items = n_items

    @classmethod
    @abstractmethod
    def create(
        cls,
        model: nn.Module,
        tokenizer: Any,
        interactions: Interactions,
        config: RunConfig,
        record: Mapping[str, Any] | None = None,
    ) -> Self:
        """One for the catalogue of `interactions`, as the configuration says.

        Args:
            model: The model, with its adapter or before.
            tokenizer: The model's; None where `prompted` is false.
            interactions: Name the items.
            config: Options of the run.
            record: What `record()` of an earlier one gave, so that it is that one again.
        """

    def record(self) -> dict[str, Any]:
        """What `create` needs beside the configuration to make it again, in JSON's types."""
        return {}

    def notes(self, samples: Samples) -> list[str]:
        """What a person should know of how `samples` fit into prompts, before long work."""
        return []

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @abstractmethod
    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """The samples as tensors on the model's device; each tensor's first dimension is n.

        Args:
            samples: Any number of them.
            scoring: Whether scores will be asked for, beside the loss.
        """

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """The outputs that loss and scores hang on; the only call that runs the model."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """ℓ_i [n]: each sample's own loss, the mean over its answer tokens."""

    @abstractmethod
    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Scores over the catalogue, [n, M]; nothing is excluded here, items that are no candidate
        of a sample have a finite score without meaning. The batch is one for scoring.
        """

    def batches(self, samples: Samples, size: int, scoring: bool = False) -> Iterator[Batch]:
        """`samples` in their order, `size` at a time."""
        for start in range(0, len(samples), size):
            part = samples.take(np.arange(start, min(start + size, len(samples))))
            yield self.collate(part, scoring)

    def losses(self, samples: Samples, size: int = 256) -> Tensor:
        """ℓ_i [n] of `samples`, as `evaluate`; scores are not kept."""
        cuts = [np.arange(s, min(s + size, len(samples))) for s in range(0, len(samples), size)]
        parts = [self.evaluate(samples.take(index), size)[1] for index in cuts]
        return torch.cat(parts) if parts else torch.empty(0, device=self.device)

    def evaluate(self, samples: Samples, size: int = 256) -> tuple[Tensor, Tensor]:
        """Scores [n, M] and losses [n] of `samples`, in evaluation mode and without gradients."""
        was_training = self.model.training
        self.model.eval()
        scores, losses = [], []
        try:
            with torch.no_grad():
                batches = self.batches(samples, size, scoring=True)
                count = -(-len(samples) // size)
                for batch in track(batches, count, "score users", delay=PATIENCE):
                    outputs = self.forward(self.model, batch)
                    scores.append(self.item_scores(outputs, batch).float())
                    losses.append(self.loss(outputs, batch).float())
        finally:
            self.model.train(was_training)
        if not scores:
            empty = torch.empty(0, device=self.device)
            return empty.reshape(0, self.n_items), empty
        return torch.cat(scores), torch.cat(losses)
