"""Beam search along the titles: of the tree, only the nodes that may lead to the best are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fudlr.recommenders.tree import additive, logits_step, weight_dtype


@dataclass(frozen=True)
class Leaf:
    """A whole title: its item, and its mean log-likelihood."""

    item: int
    score: float


@dataclass(frozen=True)
class _Beam:
    """The beginning of some titles: their items, and log p of the tokens so far."""

    items: tuple[int, ...]
    total: float


def beam_search(
    model: nn.Module,
    prompt: dict[str, Tensor],
    answers: Mapping[int, list[int]],
    beams: int,
    k: int,
) -> list[Leaf]:
    """The best titles below one prompt, by log-likelihood a token, best first.

    At each depth the `beams` beginnings of the highest mean log-likelihood go on; whole titles
    are kept aside. The prompt is computed once, and each step adds the kept beginnings' last
    tokens, in rows of one batch.

    Args:
        model: In evaluation mode.
        prompt: One prompt, [1, t].
        answers: Tokens of each title with its end, by item; no title is another's beginning.
        beams: Beginnings that are followed.
        k: Titles wanted.
    """
    values, cache = logits_step(model, DynamicCache(), **prompt, last=True)
    alive = [_Beam(tuple(answers), 0.0)]
    rows = values[:, -1].float().log_softmax(-1)
    done: list[Leaf] = []
    depth = 0
    width = prompt["input_ids"].shape[1]
    first = int(prompt["position_ids"][0, -1]) + 1
    while alive:
        grown: list[tuple[int, int, _Beam]] = []
        for row, beam in enumerate(alive):
            below: dict[int, list[int]] = {}
            for item in beam.items:
                below.setdefault(answers[item][depth], []).append(item)
            tokens = list(below)
            gains = rows[row, torch.tensor(tokens, device=rows.device)].tolist()
            for token, gain in zip(tokens, gains, strict=True):
                total = beam.total + gain
                ended = [i for i in below[token] if len(answers[i]) == depth + 1]
                done += [Leaf(item, total / (depth + 1)) for item in ended]
                rest = tuple(i for i in below[token] if len(answers[i]) > depth + 1)
                if rest:
                    grown.append((row, token, _Beam(rest, total)))
        grown = sorted(grown, key=lambda g: -g[2].total)[:beams]
        alive = [beam for _, _, beam in grown]
        if not alive:
            break
        device = rows.device
        origin = torch.tensor([row for row, _, _ in grown], device=device)
        cache.batch_select_indices(origin)
        n = len(alive)
        sees = torch.ones(n, 1, width + depth + 1, dtype=torch.bool, device=device)
        sees[:, :, :width] = prompt["attention_mask"].bool()
        values, cache = logits_step(
            model,
            cache,
            input_ids=torch.tensor([[token] for _, token, _ in grown], device=device),
            attention_mask=additive(sees, weight_dtype(model)),
            position_ids=torch.full((n, 1), first + depth, device=device),
            last=True,
        )
        rows = values[:, -1].float().log_softmax(-1)
        depth += 1
    return sorted(done, key=lambda leaf: (-leaf.score, leaf.item))[:k]
