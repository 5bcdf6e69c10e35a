"""What every recommender offers: batches, outputs, one loss a sample, scores over the catalogue.

The protocol has four steps, so that the engine, the metrics and the training each take the part
they need and nothing else:

    batch = recommender.batch(samples)               # tensors; the first dimension is the sample
    outputs = recommender.forward(model, batch)      # what the engine differentiates
    recommender.loss(outputs, batch)                 # [n], ℓ_i, never divided by the batch
    recommender.item_scores(outputs, batch)          # [n, M], higher is better; differentiable

`collate` makes a batch on the host, and `batch` brings it to the model. Where scores cost more than
the loss (a tree of titles), a batch holds what scores need only if it was made with `scoring=True`;
its outputs are then a pair, the loss's and the scores'.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fudlr.common.batches import token_batches
from fudlr.common.device import ahead, moved
from fudlr.common.errors import ModelError
from fudlr.common.factors import Scores
from fudlr.common.parallel import ranks
from fudlr.common.progress import PATIENCE, track
from fudlr.config import RunConfig
from fudlr.data.interactions import Interactions, Samples
from fudlr.recommenders.cached import float32_head
from fudlr_ext import Engine
from fudlr_ext.passes import NOISE, rounded_again

Batch = dict[str, Any]
Outputs = Tensor | tuple[Tensor, Tensor]
LARGE = 2**13
"""Items from which on scores are kept as factors, where a recommender has these."""
# What models raise that take no mask, no positions or no such cache.
UNFIT = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Recommender(ABC):
    """A causal LM that scores a catalogue of M items for a user's history.

    Args:
        model: The Hugging Face model, with or without a peft adapter.
        tokenizer: The model's; None where `prompted` is false.
        interactions: Name the items.
        config: Options of the run.
        record: What `record()` of an earlier one gave, so that it is that one again.
    """

    name: ClassVar[str]
    prompted: ClassVar[bool] = True
    """Whether it writes prompts in words, for which it needs the model's tokenizer."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        interactions: Interactions,
        config: RunConfig,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.n_items, self.window = model, interactions.n_items, config.data.window
        self._probed = False
        self.engine: Engine | None = None
        """Runs the model for `evaluate` and `losses`, where it is of this model."""

    def record(self) -> dict[str, Any]:
        """What is needed beside the configuration to make it again, in JSON's types."""
        return {}

    @classmethod
    def extend(
        cls, model: nn.Module | None, tokenizer: Any, interactions: Interactions, config: RunConfig
    ) -> list[int]:
        """Give tokenizer and model the tokens that recommending takes beside their own.

        Args:
            model: The base model before an adapter; None for one that the tokenizer's vocabulary
                decides the size of.
            tokenizer: The model's.
            interactions: Name the items.
            config: Options of the run.

        Returns:
            The tokens whose rows of embedding and output matrix are trained with the adapter.
        """
        return []

    def notes(self, samples: Samples) -> list[str]:
        """What a person should know of how `samples` fit into prompts, before long work.

        Raises:
            ModelError: The model cannot be read in the way that scores are made; see `probe`.
        """
        self.probe()
        return []

    def probe(self) -> None:
        """Hold the way that scores are made against the model's own answer for one row alone; once.

        Rows are padded on the left, prompts shared and titles packed into a tree, which is right
        where attention follows masks and positions. Some models do not: biases by distance in the
        row (ALiBi), local windows, recurrent layers.

        Raises:
            ModelError: Logits are not those of the row alone.
        """
        if self._probed:
            return
        kind = getattr(getattr(self.model, "config", None), "model_type", type(self.model).__name__)
        asked = f"{self.name} was to score items with a model of the type {kind}"
        remedy = "Use a model whose attention follows positions and masks (Llama, Qwen, Gemma, ...)"
        if self.name != "item_tokens":
            remedy += ", or recommender.kind=item_tokens"
        weight: Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
        half = weight.dtype in (torch.bfloat16, torch.float16)
        try:
            with evaluating(self.model), torch.no_grad():
                for place, (what, found, alone) in enumerate(self._probe()):
                    error, allowed = _distance(found, alone), 0.05 if half else 1e-3
                    if half and error > allowed:  # a deep model makes any noise of rounding
                        with rounded_again(self.model):
                            _, _, again = next(islice(self._probe(), place, None))
                        allowed = max(allowed, NOISE * _distance(again, alone))
                    if not error <= allowed:
                        off = f"for {what}, its logits are off by {error:.2g} of their spread from"
                        raise ModelError(asked, f"{off} those of the same tokens alone", remedy)
        except UNFIT as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(asked, f"it does not take such a batch ({text})", remedy) from error
        self._probed = True

    @abstractmethod
    def _probe(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What is tried, its logits, and those of the same tokens in a row of their own."""

    def _alone(self, tokens: Sequence[int]) -> Tensor:
        """Logits after `tokens`, [vocabulary], from the model's plain forward pass."""
        row = torch.tensor([list(tokens)], device=self.device)
        with float32_head(self.model):
            logits: Tensor = self.model(input_ids=row).logits
        return logits[0, -1]

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @abstractmethod
    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """The samples as tensors on the host; each tensor's first dimension is n.

        Args:
            samples: Any number of them.
            scoring: Whether scores will be asked for, beside the loss.
        """

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """The outputs that loss and scores depend on; the only call that runs the model."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """ℓ_i [n]: each sample's own loss, the mean over its answer tokens."""

    def terms(self, samples: Samples) -> Tensor:
        """Of how many tokens' or questions' losses each ℓ_i is the mean, [n].

        A mean of T has T times the curvature that its gradient's square estimates: where answers
        are as the model expects them, the terms' gradients are uncorrelated.
        """
        return torch.ones(len(samples))

    @abstractmethod
    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Scores over the catalogue, [n, M]; nothing is excluded here, items that are no candidate
        of a sample have a finite score without meaning. The batch is one for scoring.
        """

    def score_rows(self, outputs: Outputs, batch: Batch) -> Tensor:
        """What `scores_of` makes scores of: the scores [n, M], or users' factors [n, w]."""
        return self.item_scores(outputs, batch)

    @property
    def has_factors(self) -> bool:
        """Whether scores are kept as factors."""
        return False

    def scores_of(self, rows: Tensor) -> Scores:
        """Scores of samples, in whichever form they are kept, from their `score_rows`."""
        return rows

    def batch(self, samples: Samples, scoring: bool = False) -> Batch:
        """The samples as `collate` makes them, on the model's device."""
        self.ready(scoring)
        return moved(self.collate(samples, scoring), self.device)

    def batches(self, samples: Samples, size: int, scoring: bool = False) -> Iterator[Batch]:
        """`samples` in their order, `size` at a time, as `parts` has them."""
        return self.parts(samples, torch.arange(len(samples)).split(size), scoring)

    def parts(
        self, samples: Samples, index: Sequence[Tensor], scoring: bool = False
    ) -> Iterator[Batch]:
        """The samples at each of some indices; on the model's device, for a GPU ahead of time."""
        self.ready(scoring)
        chosen = (samples.take(part.numpy()) for part in index)
        return ahead((self.collate(part, scoring) for part in chosen), self.device)

    def ready(self, scoring: bool) -> None:  # noqa: B027  (most have nothing to do)
        """Compute what batches, for scoring or not, need of the model beforehand."""

    def lengths(self, samples: Samples) -> Tensor | None:
        """Tokens of every sample [n], which batches are padded to the longest of; or None.

        With them, `evaluate` puts samples of like length together.
        """
        return None

    def losses(self, samples: Samples, size: int = 256) -> Tensor:
        """ℓ_i [n] of `samples`, as `evaluate` gives them, without the cost of scores."""
        return self._scored(samples, size, scoring=False)[1]

    def evaluate(self, samples: Samples, size: int = 256) -> tuple[Scores, Tensor]:
        """Scores [n, M] and losses [n] of `samples` on the host, without gradients, in evaluation
        mode. Scores are `Factors` where the recommender has them and items are `LARGE` or more.

        Args:
            samples: The n samples; results are in their order, whatever the batches.
            size: Most samples of a batch; where `lengths` are known, samples of like length stand
                together, and a batch has no more tokens than `size` samples of mean length.
        """
        return self._scored(samples, size, scoring=True)

    def _scored(self, samples: Samples, size: int, scoring: bool) -> tuple[Scores, Tensor]:
        self.probe()
        count = len(samples)
        rows, losses = torch.zeros(0, self.n_items), torch.zeros(count)
        if not count:
            return rows, losses
        lengths, here = self.lengths(samples), ranks()
        size = min(size, -(-count // here.size))  # a batch for each rank, at least
        index: Sequence[Tensor] = torch.arange(count).split(size)
        if lengths is not None:
            mean = -(-int(lengths.sum()) * size // len(lengths))
            index = token_batches(lengths, max(int(lengths.max()), mean, 1), size)
        index = index[here.rank :: here.size]
        engine = self.engine if self.engine and self.engine.model is self.model else None
        with evaluating(self.model), torch.no_grad():
            batches = self.parts(samples, index, scoring)
            shown = track(batches, len(index), "score users", delay=PATIENCE)
            for at, batch in zip(index, shown, strict=True):
                if engine is None:
                    outputs = self.forward(self.model, batch)
                else:
                    outputs = engine.outputs(self.forward, batch)
                losses[at] = self.loss(outputs, batch).float().cpu()
                if scoring:
                    found = self.score_rows(outputs, batch)
                    rows = rows if len(rows) else torch.zeros(count, found.shape[1])
                    rows[at] = found.float().cpu()
        here.sum(losses)
        if scoring and here.size > 1:
            width = max(here.gather(rows.shape[1] if len(rows) else 0))
            rows = rows if len(rows) else torch.zeros(count, width)
            here.sum(rows)
        return self.scores_of(rows) if scoring else rows, losses


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in evaluation mode; afterwards in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _distance(found: Tensor, alone: Tensor) -> float:
    """‖found − alone‖ over the spread of `alone`; infinite where either is not finite."""
    found, alone = found.double(), alone.double()
    spread = (alone - alone.mean()).norm().clamp(min=1e-12)
    return float(((found - alone).norm() / spread).nan_to_num(nan=math.inf))
