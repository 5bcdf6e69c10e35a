"""The answer is a title: its length-normalised log-likelihood, over a tree of all titles.

    s_j = (1/|w|) Σ_t log p(w_t | prompt, w_<t),   w the tokens of title j and the end token

The loss of a sample is −s of its target, so that it stands on the answer alone. Beam search along
the tree finds the best titles without scoring all (Bao et al. 2024, "Decoding matters", arXiv
2406.14900, on length and decoding in title-generating recommenders).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from fudlr.common.errors import UsageError
from fudlr.common.progress import track
from fudlr.data.interactions import Samples
from fudlr.recommenders.base import Batch, Outputs, evaluating
from fudlr.recommenders.beam import beam_search
from fudlr.recommenders.packing import each_below
from fudlr.recommenders.prompting import Prompted, scattered
from fudlr.recommenders.tree import Seen, TokenTree, walk
from fudlr_ext import label_logits, label_loss


class TitleTree:
    """The tree of some items' titles, and how to put scores together from its nodes.

    The tree holds the titles without their last token, the end: that is only predicted.

    Args:
        answers: Tokens of each title with its end, [C].
    """

    def __init__(self, answers: list[list[int]]) -> None:
        self.tree = TokenTree([answer[:-1] for answer in answers])
        self.nodes, self.used = self.tree.paths()
        self.length = torch.tensor([len(answer) for answer in answers])
        # A value is read at `source` for `target`: at a node's parent for the node's token, and at
        # a title's last node for its end.
        parent = torch.from_numpy(self.tree.parent)
        self.source = torch.cat([parent, torch.from_numpy(self.tree.ends)])
        self.target = torch.cat(
            [
                torch.from_numpy(self.tree.token),
                torch.tensor([a[-1] for a in answers], dtype=torch.int64),
            ]
        )

    def scores(self, seen: Iterable[Seen], n: int) -> Tensor:
        """Mean log-likelihood of every title [n, C], from logits at the nodes."""
        found: list[Tensor] = []
        places: list[Tensor] = []
        for part in seen:
            here = ((self.source >= part.start) & (self.source < part.stop)).nonzero().flatten()
            if not len(here):
                continue
            logits = part.values.float() if part.values.dtype != torch.float64 else part.values
            column = (self.source[here] - part.start).to(logits.device)
            target = self.target[here].to(logits.device)
            normaliser = logits.logsumexp(-1)
            found.append(logits[:, column, target] - normaliser[:, column])
            places.append(here)
        order = torch.cat(places).argsort()
        values = torch.cat(found, 1)[:, order.to(found[0].device)]  # [n, N + C]
        count = len(self.tree)
        inner, last = values[:, :count], values[:, count:]
        total = last
        if self.nodes.shape[1]:
            used = self.used.to(values.device)
            total = last + torch.where(used, inner[:, self.nodes.to(values.device)], 0.0).sum(-1)
        return total / self.length.to(values)


class Titles(Prompted):
    """Scores titles along a prefix tree, over the whole catalogue or each sample's candidates."""

    name: ClassVar[str] = "titles"

    @cached_property
    def catalogue(self) -> TitleTree:
        """The tree of all titles."""
        return TitleTree(self.pieces.answers)

    def collate(self, samples: Samples, scoring: bool = False) -> Batch:
        """Prompt and title with `labels`; for scoring also `prompt`, and the items of each tree."""
        prompts = self.prompts(samples)
        batch = self.answered(samples, prompts)
        if scoring:
            batch["prompt"] = self.padded([prompt.tokens for prompt in prompts])
            if self.candidates:
                chosen = self.candidates.items(samples)
                batch["candidates"] = torch.from_numpy(chosen).to(self.device)
        return batch

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits at the title's tokens; for scoring beside them the scores of all titles."""
        prompt = batch.get("prompt")
        given = {k: v for k, v in batch.items() if k not in ("prompt", "candidates")}
        logits = label_logits(model, given)
        if prompt is None:
            return logits
        if "candidates" not in batch:
            seen = walk(model, prompt, self.catalogue.tree, self.nodes)
            return logits, self.catalogue.scores(seen, len(logits))
        chosen = batch["candidates"].tolist()
        parts = [TitleTree([self.pieces.answers[j] for j in items]) for items in chosen]
        trees = [part.tree for part in parts]
        below = each_below(model, prompt, trees, self.nodes, self.pieces.pad)
        pairs = zip(below, parts, strict=True)
        return logits, torch.cat([part.scores(seen, 1) for seen, part in pairs])

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean −log p over the title's tokens and its end, [n]."""
        return label_loss(outputs if isinstance(outputs, Tensor) else outputs[0], batch)

    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean log-likelihood of every title, [n, M]."""
        scores = scores_of(outputs)
        if "candidates" not in batch:
            return scores
        return scattered(scores, batch["candidates"], self.n_items)

    def token_passes(self, samples: Samples) -> tuple[int, int]:
        """Tokens that scoring takes over the whole tree, and with every title on its own."""
        together = alone = 0
        for prompt in self.prompts(samples):
            size = len(prompt.tokens)
            together += size + len(self.catalogue.tree)
            alone += sum(size + len(answer) - 1 for answer in self.pieces.answers)
        return together, alone

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
                given = self.padded([prompt.tokens])
                found = [x.item for x in beam_search(self.model, given, answers, beams, k)]
                others = [item for item in allowed if item not in set(found)]
                rows.append((found + others)[:k])
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, k)


def scores_of(outputs: Outputs) -> Tensor:
    """The scores' part of outputs of a batch that was collated for scoring.

    Raises:
        UsageError: It was not.
    """
    if isinstance(outputs, Tensor):
        raise UsageError(
            "scores over the catalogue were asked for",
            "the batch was made for the loss alone",
            "Collate it with scoring=True",
        )
    return outputs[1]
