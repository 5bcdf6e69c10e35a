"""Prompts and the trees below them packed into one row a sample, or walked one by one.

A packed row is the prompt and, after it, the nodes of a tree of its own; the attention mask says
who sees whom. It takes one pass for many samples with small trees; large trees, and large
vocabularies, are walked with a cached prompt instead (see `tree`), which holds less at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from fudlr.common.device import moved
from fudlr.recommenders.base import Batch, Outputs
from fudlr.recommenders.cached import float32_head
from fudlr.recommenders.prompting import Prompted, scattered
from fudlr.recommenders.tree import ROOT, Seen, TokenTree, additive, walk, weight_dtype

LARGEST = 2**25  # numbers of a mask or of logits that are held at a time


def pack(
    model: nn.Module, prompts: Sequence[Sequence[int]], trees: Sequence[TokenTree], pad: int
) -> tuple[dict[str, Tensor], list[int]]:
    """Rows for the model, on the host, and the column where each sample's tree starts, [n].

    `input_ids`, `position_ids` [n, t] and `attention_mask` [n, 1, t, t], to be added. Rows are
    padded on the left; padding sees itself alone and is seen by none.
    """
    sizes = [len(p) + len(t) for p, t in zip(prompts, trees, strict=True)]
    width, n = max(sizes, default=1), len(sizes)
    ids = torch.full((n, width), pad)
    positions = torch.zeros(n, width, dtype=torch.int64)
    sees = torch.eye(width, dtype=torch.bool).repeat(n, 1, 1)
    starts = []
    for i, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        head = len(prompt)
        first, start = width - sizes[i], width - len(tree)  # of the prompt, of the tree
        ids[i, first:start] = torch.tensor(prompt)
        ids[i, start:] = torch.from_numpy(tree.token)
        positions[i, first:start] = torch.arange(head)
        positions[i, start:] = head + torch.from_numpy(tree.depth)
        sees[i, first:start, first:start] = torch.ones(head, head, dtype=torch.bool).tril()
        sees[i, start:, first:start] = True
        if len(tree):
            sees[i, start:, start:] = next(tree.stretches(len(tree))).sees
        starts.append(start)
    inputs = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": additive(sees, weight_dtype(model)),
    }
    return inputs, starts


def vocabulary(model: nn.Module) -> int:
    """Tokens that it has logits of."""
    return int(model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]


def each_below(
    model: nn.Module, prompt: dict[str, Tensor], trees: Sequence[TokenTree], size: int, pad: int
) -> Iterator[list[Seen]]:
    """For each prompt and its own tree, in their order, the logits after it and at its nodes.

    Args:
        model: A causal language model.
        prompt: `input_ids`, `attention_mask`, `position_ids` [n, t], padded on the left.
        trees: One a prompt.
        size: Most nodes of one tree that go through the model together.
        pad: The token for padding.
    """
    width = prompt["input_ids"].shape[1] + max((len(tree) for tree in trees), default=0)
    group = LARGEST // (width * max(width, vocabulary(model)))
    if group < 2 or max(len(tree) for tree in trees) > size:
        for i, tree in enumerate(trees):
            real = prompt["attention_mask"][i].bool()
            alone = {name: value[i : i + 1, real] for name, value in prompt.items()}
            yield list(walk(model, alone, tree, size))
        return
    pairs = zip(prompt["input_ids"], prompt["attention_mask"].bool(), strict=True)
    rows = [ids[real].tolist() for ids, real in pairs]
    for at in range(0, len(trees), group):
        inputs, starts = pack(model, rows[at : at + group], trees[at : at + group], pad)
        inputs = moved(inputs, prompt["input_ids"].device)
        with float32_head(model):
            logits = model(**inputs, use_cache=False).logits
        for i, start in enumerate(starts):
            one = logits[i : i + 1]
            yield [
                Seen(ROOT, 0, one[:, start - 1 : start]),
                Seen(0, logits.shape[1] - start, one[:, start:]),
            ]


class Scorer(Protocol):
    """A tree of what is asked about some items, and how their scores are read off it."""

    tree: TokenTree

    def scores(self, seen: Iterable[Seen]) -> Tensor:
        """Scores of the items [n, C], from logits at the nodes."""


class TreeScored(Prompted):
    """Scores read off a tree below the prompt: the catalogue's, or one of a sample's candidates."""

    @abstractmethod
    def scorer(self, items: Iterable[int]) -> Scorer:
        """The tree for `items`."""

    @cached_property
    def catalogue(self) -> Scorer:
        """The tree for all items."""
        return self.scorer(range(self.n_items))

    def below(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scores of every item, or of each sample's candidates, [n, C]."""
        prompt = batch["prompt"]
        if "candidates" not in batch:
            tree, rows = self.catalogue.tree, len(prompt["input_ids"])
            if not torch.is_grad_enabled():  # a graph holds the logits of all rows anyway
                together = min(len(tree) + 1, self.nodes) * vocabulary(model)
                rows = max(1, LARGEST // together)
            split = {name: value.split(rows) for name, value in prompt.items()}
            parts = [
                dict(zip(split, part, strict=True)) for part in zip(*split.values(), strict=True)
            ]
            walks = (walk(model, part, tree, self.nodes) for part in parts)
            return torch.cat([self.catalogue.scores(seen) for seen in walks])
        scorers = [self.scorer(items) for items in batch["candidates"].tolist()]
        trees = [own.tree for own in scorers]
        each = each_below(model, prompt, trees, self.nodes, self.pieces.pad)
        return torch.cat([own.scores(seen) for own, seen in zip(scorers, each, strict=True)])

    def item_scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Scores of every item, [n, M]."""
        scores = self.scored(outputs)
        if "candidates" not in batch:
            return scores
        return scattered(scores, batch["candidates"], self.n_items)
