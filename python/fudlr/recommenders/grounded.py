"""Titles grounded in the catalogue (BIGRec): a hidden state against every item's embedding.

    s_j = −‖q − e_j‖ / σ   or   q · e_j / σ

e_j is the last hidden state at the end of title j, written after a prompt without history by the
base model (the adapter off, so that the catalogue does not move with θ). q is the state at the end
of the title that the model writes itself (greedily; which tokens it writes is held fixed in the
gradient), or at the prompt's end. σ, the spread of the items' own scores, makes the catalogue
softmax neither flat nor a single item. The loss is the title's, as in `titles`.

Bao et al. 2023, "A bi-step grounding paradigm", arXiv 2308.08434.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fudlr.data.candidates import candidate_items
from fudlr.data.interactions import Samples
from fudlr.recommenders.base import Batch, Outputs
from fudlr.recommenders.prompting import Prompted, scattered
from fudlr.recommenders.titles import scores_of
from fudlr.recommenders.tree import TokenTree, states_step, walk
from fudlr_ext import label_logits, label_loss


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
            own = self._against(self._embeddings, self._embeddings)
            self._spread = float(own.std(1).mean().clamp(min=1e-12))
        return self._embeddings

    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """Prompt and title with `labels`; for scoring also `prompt`, and `candidates`."""
        prompts = self.prompts(samples)
        batch = self.answered(samples, prompts)
        if scoring:
            batch["prompt"] = self.padded([prompt.tokens for prompt in prompts])
            if self.candidates is not None:
                chosen = candidate_items(samples, self.candidates, self.candidate_seed)
                batch["candidates"] = torch.from_numpy(chosen).to(self.device)
        return batch

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits at the title's tokens; for scoring beside them the states q [n, hidden]."""
        given = {k: v for k, v in batch.items() if k not in ("prompt", "candidates")}
        logits = label_logits(model, given)
        if "prompt" not in batch:
            return logits
        row, place = batch["prompt"], -torch.ones(len(logits), dtype=torch.int64)
        if self.config.query == "generated":
            row, place = self._written(model, row)
        states = model.get_decoder()(**row, use_cache=False).last_hidden_state  # type: ignore[operator]
        picked = (place % states.shape[1]).to(states.device)
        return logits, states[torch.arange(len(states), device=states.device), picked]

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean −log p over the title's tokens and its end, [n]."""
        return label_loss(outputs if isinstance(outputs, Tensor) else outputs[0], batch)

    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Nearness of every item, [n, M]."""
        states = scores_of(outputs)
        embeddings = self.embeddings.to(states)
        scores = self._against(states, embeddings) / self._spread
        if "candidates" not in batch:
            return scores
        return scattered(scores.gather(1, batch["candidates"]), batch["candidates"], self.n_items)

    def _against(self, states: Tensor, embeddings: Tensor) -> Tensor:
        if self.config.distance == "dot":
            return states @ embeddings.T
        square = states.square().sum(1)[:, None] + embeddings.square().sum(1)
        # Not torch.cdist, whose gradient is not a number at distance 0.
        return -(square - 2 * states @ embeddings.T).clamp(min=1e-6).sqrt()

    def _embed(self) -> Tensor:
        """States at the ends of all titles below a prompt without history, in one tree."""
        tree = TokenTree([answer[:-1] for answer in self.pieces.answers])
        prompt = self.padded([self.pieces.prompt([], self.config.max_tokens).tokens])
        ends = torch.from_numpy(tree.ends)
        was_training = self.model.training
        self.model.eval()
        found: Tensor | None = None
        try:
            with torch.no_grad(), _without_adapter(self.model):
                for part in walk(self.model, prompt, tree, self.config.nodes, states_step):
                    here = ((ends >= part.start) & (ends < part.stop)).nonzero().flatten()
                    values = part.values[0].detach()
                    if found is None:
                        found = values.new_empty(len(ends), values.shape[1])
                    found[here.to(values.device)] = values[
                        (ends[here] - part.start).to(values.device)
                    ]
        finally:
            self.model.train(was_training)
        assert found is not None  # the prompt itself is always walked
        return found.float() if found.dtype != torch.float64 else found

    def _written(
        self, model: nn.Module, prompt: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The prompts with what the model writes after them, and where that ends, [n]."""
        end = self.pieces.end
        longest = max(len(answer) for answer in self.pieces.answers) - 1
        ids, mask = prompt["input_ids"], prompt["attention_mask"]
        position = prompt["position_ids"][:, -1:]
        open_ = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        rows, masks, places = [ids], [mask], [prompt["position_ids"]]
        given = dict(prompt)
        cache: Any = DynamicCache()
        with torch.no_grad():
            for _ in range(longest):
                out = model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                token = out.logits[:, -1].argmax(-1)
                open_ = open_ & (token != end)
                if not bool(open_.any()):
                    break
                position = position + 1
                rows.append(torch.where(open_, token, self.pieces.pad)[:, None])
                masks.append(open_[:, None].to(mask.dtype))
                places.append(position)
                given = {
                    "input_ids": rows[-1],
                    "attention_mask": torch.cat(masks, 1),
                    "position_ids": position,
                }
        row = {
            "input_ids": torch.cat(rows, 1),
            "attention_mask": torch.cat(masks, 1),
            "position_ids": torch.cat(places, 1),
        }
        written = row["attention_mask"][:, ids.shape[1] :].sum(1)
        return row, ids.shape[1] - 1 + written


def _without_adapter(model: nn.Module) -> AbstractContextManager[Any]:
    disabled = getattr(model, "disable_adapter", None)
    return disabled() if disabled is not None else nullcontext()
