"""Each item is a token; a prompt is the user's latest items; scores are the next token's logits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fudlr.common.device import moved
from fudlr.common.errors import ModelError
from fudlr.common.factors import Factors, Scores
from fudlr.config import RunConfig
from fudlr.data.interactions import DataWarning, Interactions, Samples
from fudlr.recommenders.base import LARGE, Batch, Outputs, Recommender, _distance, evaluating
from fudlr.recommenders.cached import float32_head
from fudlr.recommenders.new_rows import APART, start_rows
from fudlr.recommenders.words import Words
from fudlr_ext import states_at
from fudlr_ext.labels import only
from fudlr_ext.ops import catalogue_mean

FACTORED = "fudlr.factored"
"""In a batch whose outputs are states, and scores their products with the items' rows."""
SAME = 1e-4
"""Of the spread of a row's logits: how far off products may be that serve in their place."""


class ItemTokens(Recommender):
    """Scores s_j = logit of item j's token after the history's tokens.

    Prompts are padded on the left and masked, so that the answer is always at the last position
    and only that position's logits are computed. The loss is −log softmax over the item tokens.

    Over `LARGE` items and more, scores are kept as products of the last hidden state and the items'
    rows of the output matrix, where that is a plain matrix without an adapter of its own and what
    the model makes of its products is nothing (no scaling, no soft cap; it is tried). Losses are
    then computed from the factors too, in training as well.

    `record` has the token of each item, `tokens` [M], and `pad_token`, which is masked and may be
    any; without it they are 0 … M−1 and M.

    Raises:
        ModelError: Two items share a token, or a token is outside of the model's vocabulary.
    """

    name: ClassVar[str] = "item_tokens"
    prompted: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        interactions: Interactions,
        config: RunConfig,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, interactions, config)
        count = self.n_items
        record = record or {"tokens": list(range(count)), "pad_token": count}
        tokens = torch.tensor(record["tokens"], dtype=torch.int64)
        vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        asked = f"a recommender over {len(tokens)} item tokens was asked for"
        if not len(tokens) or not bool(((tokens >= 0) & (tokens < vocabulary)).all()):
            found = f"the item tokens do not lie in the model's vocabulary of {vocabulary}"
            remedy = (
                "Use the base model that the run was trained with, or add the item tokens to it"
            )
            raise ModelError(asked, found, remedy)
        if len(torch.unique(tokens)) < len(tokens):
            raise ModelError(asked, "two items share a token", "Give each item a token of its own")
        self.item_tokens, self.pad_token = tokens, int(record["pad_token"])
        first, last = int(tokens[0]), int(tokens[-1])
        # A slice is a view; only scattered tokens need a gather.
        contiguous = bool((tokens == torch.arange(first, first + len(tokens))).all())
        self._columns: slice | Tensor = slice(first, last + 1) if contiguous else tokens
        self._factored: bool | None = None if count >= LARGE else False
        self._rows: tuple[int, Tensor] | None = None

    def record(self) -> dict[str, Any]:
        """Which token stands for which item."""
        return {"tokens": self.item_tokens.tolist(), "pad_token": self.pad_token}

    def _probe(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Histories of unlike length in one batch, and each alone.

        Of the first items and of the last: one token may have a meaning of its own in the model.
        """
        first, last = self.item_tokens[: self.window], self.item_tokens[-self.window :]
        rows = [first, first[:1], last, last[:1]]
        width = len(first)
        real = torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])
        whole = [row if len(row) == width else row.expand(width) for row in rows]
        ids = torch.where(real, torch.stack(whole), self.pad_token)
        found = self.forward(self.model, moved(self._inputs(ids, real.long()), self.device))
        for row, tokens in zip(found, rows, strict=True):
            alone = self._alone(tokens.tolist())
            yield "histories of unlike length", row, alone[self.item_tokens.to(alone.device)]

    def ready(self, scoring: bool) -> None:
        """See whether scores are products of states and items' rows, once."""
        if self._factored is not None:
            return
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        plain = type(head) is nn.Linear and type(head.weight) is nn.Parameter
        self._factored = plain and head.bias is None and not head.weight.requires_grad
        if not self._factored:
            return
        ids = moved(self.item_tokens[: self.window][None], self.device)
        given = self._inputs(ids, torch.ones_like(ids))
        with evaluating(self.model), torch.no_grad():
            states = self.forward(self.model, {**given, FACTORED: True})
            found, alone = self._factors(states.float()).dense(), self.forward(self.model, given)
        self._factored = _distance(found[0], alone[0]) <= SAME

    def _items(self) -> Tensor:
        """The items' rows of the output matrix, [M, w]: a view of it, or made once."""
        weight: Tensor = self.model.get_output_embeddings().weight.detach()  # type: ignore[operator]
        if isinstance(self._columns, slice):
            return weight[self._columns]
        if self._rows is None or self._rows[0] != weight._version:
            self._rows = weight._version, weight[self._columns.to(weight.device)]
        return self._rows[1]

    def _factors(self, states: Tensor) -> Factors:
        items = self._items().to(states.device)
        # The ops take float16 on GPUs alone.
        narrow = items.dtype == torch.float16 and items.device.type == "cpu"
        return Factors(states, items.float() if narrow else items)

    def _inputs(self, ids: Tensor, mask: Tensor) -> Batch:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}

    def lengths(self, samples: Samples) -> Tensor:
        """Items of every history that the window shows, [n]."""
        start = samples.interactions.user_starts[samples.user]
        return torch.from_numpy(np.minimum(samples.position - start, self.window))

    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """`input_ids`, `attention_mask`, `position_ids` [n, t]; `target` [n], an item's index; and
        whether outputs are `FACTORED`.
        """
        length = self.lengths(samples).numpy()
        width = max(int(length.max(initial=0)), 1)
        column = np.arange(width)
        real = column >= width - length[:, None]
        row = np.where(real, samples.position[:, None] - width + column, 0)
        ids = np.where(
            real, self.item_tokens.numpy()[samples.interactions.item[row]], self.pad_token
        )
        inputs = self._inputs(torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64)))
        found = {**inputs, "target": torch.from_numpy(samples.target)}
        return {**found, FACTORED: True} if self._factored else found

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the item tokens after the prompt, [n, M]; factored, the state there, [n, w]."""
        ids = batch["input_ids"]
        last_position = torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)
        given = {k: v for k, v in batch.items() if k not in ("target", FACTORED)}
        if FACTORED in batch:
            return states_at(model, given, last_position)[:, 0]
        # Within an engine's pass the padding is left out, and the last layer's other positions.
        with only(model, last_position), float32_head(model):
            logits: Tensor = model(**given, logits_to_keep=1, use_cache=False).logits
        last = logits[:, -1]
        if isinstance(self._columns, slice):
            return last[:, self._columns]
        return last.index_select(1, self._columns.to(last.device))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """−log softmax over the catalogue at the next item, [n]."""
        assert isinstance(outputs, Tensor)
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        if FACTORED in batch:
            items, none = self._factors(outputs).items, outputs.new_empty(self.n_items, 0)
            own = (outputs * items[batch["target"]].to(outputs)).sum(1)
            return catalogue_mean(outputs, items, none)[1] - own
        return cross_entropy(outputs, batch["target"], reduction="none")

    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The outputs themselves, [n, M], or what they are factors of."""
        assert isinstance(outputs, Tensor)
        return self._factors(outputs).dense() if FACTORED in batch else outputs

    def score_rows(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The outputs themselves, [n, M] or [n, w]."""
        assert isinstance(outputs, Tensor)
        return outputs

    @property
    def has_factors(self) -> bool:
        """Whether outputs are states."""
        self.ready(scoring=True)
        return bool(self._factored)

    def scores_of(self, rows: Tensor) -> Scores:
        """Factors where outputs are states."""
        return self._factors(rows) if self._factored else rows


def add_item_tokens(model: nn.Module, tokenizer: object, titles: list[str]) -> Tensor:
    """Give any Hugging Face causal LM one new token an item; returns their ids [M].

    A new token's rows are the mean of its title's tokens, so that the model's knowledge of the
    title carries over; titles of the same tokens are told apart by an offset (see `start_rows`).

    Args:
        model: The base model, before an adapter is attached.
        tokenizer: Its tokenizer.
        titles: The items' titles, in the order of the items.

    Raises:
        ModelError: A title has no tokens.
    """
    encoded = Words(tokenizer).titles(titles)
    before = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    ids = torch.arange(before, before + len(titles))
    if twins := start_rows(model, ids, encoded):
        text = (
            f"{twins} items have titles of the same tokens as another's, in some order; their "
            f"embeddings are told apart by a random offset of {APART:.0%}"
        )
        warnings.warn(DataWarning(text, "title_tokens", twins), stacklevel=2)
    return ids
