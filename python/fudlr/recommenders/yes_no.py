"""Yes or no (TALLRec): would this user like this item?

    s_j = logit(yes) − logit(no) at the answer, with item j in the question
    ℓ_i = mean of −log p(yes) for the target and −log p(no) for items drawn, over the vocabulary

The questions of one user share the prompt and stand below it as branches of a tree (see `tree`):
the history is computed once for all of them. Bao et al. 2023, arXiv 2305.00447.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fudlr.common.errors import ModelError
from fudlr.data.candidates import candidate_items
from fudlr.data.interactions import Samples
from fudlr.recommenders.base import Batch, Outputs
from fudlr.recommenders.cached import logits_at
from fudlr.recommenders.packing import each_below, pack
from fudlr.recommenders.prompting import Prompted, scattered
from fudlr.recommenders.titles import scores_of
from fudlr.recommenders.tree import Seen, TokenTree, walk


class YesNo(Prompted):
    """Scores items by what the model answers to a question about each."""

    name: ClassVar[str] = "yes_no"
    asks_for_item: ClassVar[bool] = True
    usual_template: ClassVar[str] = "tallrec"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        template = self.pieces.template
        yes, no = (
            self.pieces.words.after(text)[:1] for text in (template.answer_yes, template.answer_no)
        )
        if not yes or not no or yes == no:
            raise ModelError(
                f"answers {template.answer_yes!r} and {template.answer_no!r} were to be told apart",
                "they start with the same token, or with none, in this tokenizer",
                "Choose another answer_yes or answer_no in the prompt template",
            )
        self.answers = torch.tensor(yes + no)

    def question(self, item: int) -> list[int]:
        """What follows the prompt where `item` is asked for."""
        return self.pieces.asked[item] + self.pieces.suffix

    @cached_property
    def catalogue(self) -> TokenTree:
        """The tree of the questions for all items."""
        return TokenTree([self.question(item) for item in range(self.n_items)])

    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """Prompt and questions of target and negatives packed in one row a sample.

        Returns:
            `input_ids`, `position_ids` [n, t], `attention_mask` [n, 1, t, t] to be added, `place`
            [n, 1 + negatives] of each question's last token; for scoring `prompt` beside them, and
            `candidates` where there are some.
        """
        prompts = self.prompts(samples)
        asked = self._asked(samples)
        trees = [TokenTree([self.question(j) for j in row]) for row in asked]
        packed = pack(self.model, [p.tokens for p in prompts], trees, self.pieces.pad)
        place = [
            [start + end for end in tree.ends.tolist()]
            for start, tree in zip(packed.start, trees, strict=True)
        ]
        places = torch.tensor(place, dtype=torch.int64).to(self.device)
        batch: Batch = {**packed.inputs, "place": places}
        if scoring:
            batch["prompt"] = self.padded([prompt.tokens for prompt in prompts])
            if self.candidates:
                chosen = self.candidates.items(samples)
                batch["candidates"] = torch.from_numpy(chosen).to(self.device)
        return batch

    def _asked(self, samples: Samples) -> list[list[int]]:
        """Target and negatives of every sample, the target first."""
        drawn = candidate_items(samples, 1 + self.config.negatives, self.seed)
        targets = samples.target.tolist()
        return [
            [target, *(item for item in row if item != target)]
            for target, row in zip(targets, drawn.tolist(), strict=True)
        ]

    def terms(self, samples: Samples) -> Tensor:
        """Questions of every sample, [n]."""
        return torch.full((len(samples),), 1.0 + self.config.negatives)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits after each question [n, 1 + negatives, vocabulary]; for scoring the scores too."""
        inputs = {k: batch[k] for k in ("input_ids", "position_ids", "attention_mask")}
        logits = logits_at(model, inputs, batch["place"])
        if "prompt" not in batch:
            return logits
        if "candidates" not in batch:
            seen = walk(model, batch["prompt"], self.catalogue, self.nodes)
            return logits, self._scores(seen, self.catalogue)
        chosen = batch["candidates"].tolist()
        trees = [TokenTree([self.question(j) for j in items]) for items in chosen]
        below = each_below(model, batch["prompt"], trees, self.nodes, self.pieces.pad)
        pairs = zip(below, trees, strict=True)
        return logits, torch.cat([self._scores(seen, tree) for seen, tree in pairs])

    def _scores(self, seen: Iterable[Seen], tree: TokenTree) -> Tensor:
        """logit(yes) − logit(no) at the ends of the tree's questions, [n, S]."""
        yes, no = self.answers.tolist()
        ends = torch.from_numpy(tree.ends)
        found, places = [], []
        for part in seen:
            here = ((ends >= part.start) & (ends < part.stop)).nonzero().flatten()
            if len(here):
                at = part.values[:, (ends[here] - part.start).to(part.values.device)]
                found.append(at[..., yes] - at[..., no])
                places.append(here)
        order = torch.cat(places).argsort().to(found[0].device)
        return torch.cat(found, 1)[:, order]

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean −log p of the right answers, [n]; the first question is the target's."""
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        right = self.answers.to(logits.device)[[0] + [1] * (logits.shape[1] - 1)]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = cross_entropy(
            logits.flatten(0, 1), right.repeat(len(logits)), reduction="none"
        ).view(logits.shape[:2])
        return losses.mean(1)

    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """logit(yes) − logit(no) of every item, [n, M]."""
        scores = scores_of(outputs)
        if "candidates" not in batch:
            return scores
        return scattered(scores, batch["candidates"], self.n_items)
