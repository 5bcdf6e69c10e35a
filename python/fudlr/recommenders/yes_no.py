"""Yes or no (TALLRec): would this user like this item?

    s_j = logit(yes) − logit(no) at the answer, with item j in the question
    ℓ_i = mean of −log p(yes) for the target and −log p(no) for items drawn, over the vocabulary

The questions of one user share the prompt and stand below it as branches of a tree (see `tree`):
the history is computed once for all of them. Bao et al. 2023, arXiv 2305.00447.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fudlr.common.errors import ModelError
from fudlr.data.candidates import candidate_items
from fudlr.data.interactions import Samples
from fudlr.recommenders.base import Batch, Outputs
from fudlr.recommenders.cached import logits_at
from fudlr.recommenders.packing import TreeScored, pack
from fudlr.recommenders.tree import Seen, TokenTree, at_nodes
from fudlr_ext import label_logits


class Questions:
    """The tree of the questions for some items, and the difference of answers at their ends.

    Args:
        questions: What follows the prompt, for each item, [C].
        answers: The tokens of yes and no.
    """

    def __init__(self, questions: list[list[int]], answers: Tensor) -> None:
        self.tree, self.answers = TokenTree(questions), answers.tolist()

    def scores(self, seen: Iterable[Seen]) -> Tensor:
        """logit(yes) − logit(no) at the ends of the questions, [n, C]."""
        yes, no = self.answers

        def taken(logits: Tensor, column: Tensor, place: Tensor) -> Tensor:
            at = logits[:, column]
            return at[..., yes] - at[..., no]

        return at_nodes(seen, torch.from_numpy(self.tree.ends), taken)


class YesNo(TreeScored):
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

    def scorer(self, items: Iterable[int]) -> Questions:
        """The tree of the questions for `items`."""
        return Questions([self.question(item) for item in items], self.answers)

    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """Prompt and questions of target and negatives packed in one row a sample.

        Returns:
            `input_ids`, `position_ids` [n, t], `attention_mask` [n, 1, t, t] to be added, `place`
            [n, 1 + negatives] of each question's last token; for scoring `prompt` beside them, and
            `candidates` where there are some.
        """
        if (own := self.own_rows(samples)) is not None:
            return self.labelled(own)
        prompts = self.prompts(samples)
        asked = self._asked(samples)
        trees = [TokenTree([self.question(j) for j in row]) for row in asked]
        inputs, starts = pack(self.model, [p.tokens for p in prompts], trees, self.pieces.pad)
        place = [(s + tree.ends).tolist() for s, tree in zip(starts, trees, strict=True)]
        batch = {**inputs, "place": torch.tensor(place, dtype=torch.int64)}
        return batch | self.for_scores(samples, prompts) if scoring else batch

    def _asked(self, samples: Samples) -> list[list[int]]:
        """Target and negatives of every sample, the target first."""
        drawn = candidate_items(samples, 1 + self.config.negatives, self.seed)
        targets = samples.target.tolist()
        return [
            [target, *(item for item in row if item != target)]
            for target, row in zip(targets, drawn.tolist(), strict=True)
        ]

    def terms(self, samples: Samples) -> Tensor:
        """Questions of every sample, [n]; tokens of the answer where rows are texts."""
        if self.own_rows(samples) is not None:
            return super().terms(samples)
        return torch.full((len(samples),), 1.0 + self.config.negatives)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits after each question [n, 1 + negatives, vocabulary]; for scoring the scores too."""
        if "labels" in batch:  # texts that an adapter from elsewhere was trained on
            return label_logits(model, batch)
        inputs = {k: batch[k] for k in ("input_ids", "position_ids", "attention_mask")}
        logits = logits_at(model, inputs, batch["place"])
        return (logits, self.below(model, batch)) if "prompt" in batch else logits

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean −log p of the right answers, [n]; the first question is the target's."""
        if "labels" in batch:
            return super().loss(outputs, batch)
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        right = self.answers[[0] + [1] * (logits.shape[1] - 1)].to(logits.device)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        right = right.expand(logits.shape[:2])
        return cross_entropy(logits.transpose(1, 2), right, reduction="none").mean(1)
