"""Titles grounded in the catalogue (BIGRec): a hidden state against every item's embedding.

    s_j = −‖q − e_j‖ / σ

e_j is the last hidden state at the end of title j, written after a prompt without history by the
base model (the adapter off, so that the catalogue does not move with θ). q is the state at the end
of the title that the model writes itself (greedily; which tokens it writes is held fixed in the
gradient). Without gradients, loss and q share one pass over the prompt.
σ, the spread of the items' own scores, makes the catalogue softmax neither flat nor a single item.
The loss is the title's, as in `titles`.

Bao et al. 2023, "A bi-step grounding paradigm", arXiv 2308.08434.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fudlr.common.device import moved
from fudlr.common.factors import Factors, Scores
from fudlr.data.interactions import Samples
from fudlr.recommenders.base import LARGE, Batch, Outputs, evaluating
from fudlr.recommenders.cached import NONE, Step, columns, followed, fork, layers_of, step
from fudlr.recommenders.prompting import Prompted, scattered
from fudlr.recommenders.tree import TokenTree, at_nodes, walk
from fudlr_ext import label_logits, label_targets, states_at

SPREAD = 2**24
"""Distances between items, about, that σ is the mean spread of; all where they are fewer."""


class Grounded(Prompted):
    """Scores items by how near their embedding is to what the model means to say."""

    name: ClassVar[str] = "grounded"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._embeddings: Tensor | None = None
        self._spread = 1.0

    @property
    def embeddings(self) -> Tensor:
        """e [M, hidden], made once."""
        if self._embeddings is None:
            self._embeddings = self._embed()
            # Of all items as seen from some: the square of a large catalogue would be too much.
            step = -(-len(self._embeddings) // max(SPREAD // len(self._embeddings), 16))
            own = _nearness(self._embeddings[::step], self._embeddings)
            self._spread = float(own.std(1).mean().clamp(min=1e-12))
        return self._embeddings

    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """Prompt and title with `labels`; for scoring also `prompt`, and `candidates`."""
        if (own := self.own_rows(samples)) is not None:
            return self.labelled(own)
        prompts = self.prompts(samples)
        batch = self.answered(samples, prompts)
        return batch | self.for_scores(samples, prompts) if scoring else batch

    def ready(self, scoring: bool) -> None:
        """Make the embeddings, where they are wanted: in an engine's pass no adapter can be off."""
        if scoring:
            self.embeddings  # noqa: B018

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits at the title's tokens; for scoring beside them the states q [n, hidden].

        What the model writes is kept in the batch, and read again while the weights are the same.
        """
        given = {k: v for k, v in batch.items() if k not in ("prompt", "candidates", "written")}
        if "prompt" not in batch:
            return label_logits(model, given)
        if not torch.is_grad_enabled():
            return self._read(model, batch)
        prompt = batch["prompt"]
        row, end = followed(prompt, self._written(model, batch), self.pieces.pad)
        return label_logits(model, given), states_at(model, row, end)[:, 0]

    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Nearness of every item, [n, M]."""
        states = self.scored(outputs)
        states = states if states.dtype == torch.float64 else states.float()
        scores = _nearness(states, self.embeddings.to(states)) / self._spread
        if "candidates" not in batch:
            return scores
        return scattered(scores.gather(1, batch["candidates"]), batch["candidates"], self.n_items)

    @property
    def has_factors(self) -> bool:
        """Whether items are many, and not chosen from candidates."""
        return self.n_items >= LARGE and self.candidates is None

    def score_rows(self, outputs: Outputs, batch: Batch) -> Tensor:
        """(2 q, −|q|², −1) where scores are kept as factors: times (e, 1, |e|²) it is −‖q − e‖²."""
        if not self.has_factors:
            return self.item_scores(outputs, batch)
        states = self.scored(outputs)
        states = states if states.dtype == torch.float64 else states.float()
        square = states.square().sum(1, keepdim=True)
        return torch.cat([2 * states, -square, -torch.ones_like(square)], 1)

    def scores_of(self, rows: Tensor) -> Scores:
        """Factors, where rows are users' ones."""
        if not self.has_factors:
            return rows
        e = self.embeddings.to(rows)
        square, spread = e.square().sum(1, keepdim=True), self._spread
        items = torch.cat([e, torch.ones_like(square), square], 1)
        return Factors(rows, items, lambda products: -(-products).clamp(min=1e-6).sqrt() / spread)

    def _embed(self) -> Tensor:
        """States at the ends of all titles below a prompt without history, in one tree."""
        tree = TokenTree([answer[:-1] for answer in self.pieces.answers])
        empty = self.pieces.prompt([], self.config.max_tokens).tokens
        prompt = moved(self.padded([empty]), self.device)
        with evaluating(self.model), torch.no_grad(), _without_adapter(self.model):
            seen = walk(self.model, prompt, tree, self.nodes, states=True)
            ends = torch.from_numpy(tree.ends)
            found = at_nodes(seen, ends, lambda values, column, _: values[:, column])[0]
        return found.float() if found.dtype != torch.float64 else found

    def _read(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `forward` gives, with the prompt computed once: without gradients alone."""
        prompt = batch["prompt"]
        begun = self._begin(model, batch)
        logits = begun.logits
        answer = label_targets(batch)[:, :-1]
        if answer.shape[1]:
            row, _ = followed(prompt, answer, self.pieces.pad)
            kept = layers_of(begun.cache)
            rest = columns(row, prompt["input_ids"].shape[1])
            after = step(model, fork(kept, kept, []), rest)
            logits = torch.cat([logits, after.logits], 1)
        return logits, self._write(model, batch, begun)

    def _begin(self, model: nn.Module, batch: Batch) -> Step:
        return step(model, DynamicCache(), batch["prompt"], last=True, states=True)

    def _written(self, model: nn.Module, batch: Batch) -> Tensor:
        """Tokens [n, w] that the model writes after the prompts, `NONE` where it has ended."""
        found = batch.get("written")
        if found is None or found.versions != _versions(model):
            with torch.no_grad():
                self._write(model, batch, self._begin(model, batch))
        return batch["written"].tokens

    def _write(self, model: nn.Module, batch: Batch, begun: Step) -> Tensor:
        """Write on greedily, a title at most; returns the states [n, hidden] where it ends."""
        prompt, now = batch["prompt"], begun
        tokens = prompt["input_ids"][:, :0]
        state = begun.states[:, -1]
        open_ = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        width = prompt["input_ids"].shape[1]
        for _ in range(max(len(answer) for answer in self.pieces.answers) - 1):
            token = now.logits[:, -1].argmax(-1)
            open_ = open_ & (token != self.pieces.end)
            if not bool(open_.any()):
                break
            tokens = torch.cat([tokens, torch.where(open_, token, NONE)[:, None]], 1)
            row, _ = followed(prompt, tokens, self.pieces.pad)
            now = step(model, now.cache, columns(row, width + tokens.shape[1] - 1), states=True)
            state = torch.where(open_[:, None], now.states[:, -1], state)
        batch["written"] = _Written(tokens, _versions(model))
        return state


def _nearness(states: Tensor, embeddings: Tensor) -> Tensor:
    square = states.square().sum(1)[:, None] + embeddings.square().sum(1)
    # Not torch.cdist, whose gradient is not a number at distance 0.
    return -(square - 2 * states @ embeddings.T).clamp(min=1e-6).sqrt()


@dataclass(frozen=True)
class _Written:
    """Tokens [n, w], and the versions of the weights that wrote them."""

    tokens: Tensor
    versions: list[int]


def _versions(model: nn.Module) -> list[int]:
    return [id(model), *(parameter._version for parameter in model.parameters())]


def _without_adapter(model: nn.Module) -> AbstractContextManager[Any]:
    disabled = getattr(model, "disable_adapter", None)
    return disabled() if disabled is not None else nullcontext()
