"""The answer is a title: its length-normalised log-likelihood, over a tree of all titles.

    s_j = (1/|w|) Σ_t log p(w_t | prompt, w_<t),   w the tokens of title j and the end token

The loss of a sample is −s of its target, so that it stands on the answer alone. Beam search along
the tree finds the best titles without scoring all (Bao et al. 2024, "Decoding matters", arXiv
2406.14900, on length and decoding in title-generating recommenders).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from fudlr.common.device import moved
from fudlr.common.progress import track
from fudlr.data.interactions import Samples
from fudlr.recommenders.base import Batch, Outputs, evaluating
from fudlr.recommenders.beam import beam_search
from fudlr.recommenders.packing import TreeScored
from fudlr.recommenders.tree import ROOT, Seen, TokenTree, at_nodes
from fudlr_ext import label_logits


class TitleTree:
    """The tree of some items' titles, and how to put scores together from its nodes.

    The tree holds the titles without their last token, the end: that is only predicted.

    Args:
        answers: Tokens of each title with its end, [C].
    """

    def __init__(self, answers: list[list[int]]) -> None:
        self.tree = TokenTree([answer[:-1] for answer in answers])
        # A token is predicted at the node before it.
        before = [[ROOT, *self.tree.path(end)] for end in self.tree.ends.tolist()]
        self.source = torch.tensor([node for nodes in before for node in nodes])
        self.target = torch.tensor([token for answer in answers for token in answer])
        self.length = torch.tensor([len(answer) for answer in answers])
        self.owner = torch.arange(len(answers)).repeat_interleave(self.length)

    def scores(self, seen: Iterable[Seen]) -> Tensor:
        """Mean log-likelihood of every title [n, C], from logits at the nodes."""

        def taken(logits: Tensor, column: Tensor, place: Tensor) -> Tensor:
            logits = logits if logits.dtype == torch.float64 else logits.float()
            target = self.target[place].to(logits.device)
            return logits[:, column, target] - logits.logsumexp(-1)[:, column]

        values = at_nodes(seen, self.source, taken)
        total = values.new_zeros(len(values), len(self.length))
        total = total.index_add(1, self.owner.to(values.device), values)
        return total / self.length.to(values)


class Titles(TreeScored):
    """Scores titles along a prefix tree, over the whole catalogue or each sample's candidates."""

    name: ClassVar[str] = "titles"

    def scorer(self, items: Iterable[int]) -> TitleTree:
        """The tree of the titles of `items`."""
        return TitleTree([self.pieces.answers[item] for item in items])

    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """Prompt and title with `labels`; for scoring also `prompt`, and the items of each tree."""
        if (own := self.own_rows(samples)) is not None:
            return self.labelled(own)
        prompts = self.prompts(samples)
        batch = self.answered(samples, prompts)
        return batch | self.for_scores(samples, prompts) if scoring else batch

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits at the title's tokens; for scoring beside them the scores of all titles."""
        given = {k: v for k, v in batch.items() if k not in ("prompt", "candidates")}
        logits = label_logits(model, given)
        return (logits, self.below(model, batch)) if "prompt" in batch else logits

    def best(self, samples: Samples, k: int, beams: int, seen: Tensor | None = None) -> Tensor:
        """The k best unseen items by constrained beam search, [n, k], best first.

        Exact where `beams` is at least the number of titles. Fewer than k found are followed by
        other unseen items in the catalogue's order.

        Args:
            samples: The n prompts.
            k: Length of a list.
            beams: Beginnings of titles that are followed at a time.
            seen: [n, M] bool, what is not listed; the samples' histories where None.
        """
        self.probe()
        closed = samples.seen() if seen is None else seen.cpu().numpy()
        rows = []
        with evaluating(self.model), torch.no_grad():
            prompts = self.prompts(samples)
            for i, prompt in enumerate(track(prompts, len(prompts), "beam search")):
                allowed = (~closed[i]).nonzero()[0].tolist()
                answers = {item: self.pieces.answers[item] for item in allowed}
                given = moved(self.padded([prompt.tokens]), self.device)
                found = beam_search(self.model, given, answers, beams, k)
                others = [item for item in allowed if item not in set(found)]
                rows.append((found + others)[:k])
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, k)
