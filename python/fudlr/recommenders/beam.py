"""Beam search along the titles: of the tree, only the nodes that may lead to the best are run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fudlr.recommenders.cached import step
from fudlr.recommenders.tree import additive, weight_dtype


def beam_search(
    model: nn.Module,
    prompt: dict[str, Tensor],
    answers: Mapping[int, list[int]],
    beams: int,
    k: int,
) -> list[int]:
    """Items of the best titles below one prompt, by log-likelihood a token, best first.

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
    now = step(model, DynamicCache(), prompt, last=True)
    width, device = prompt["input_ids"].shape[1], prompt["input_ids"].device
    first = prompt["position_ids"][:, -1:] + 1
    alive = [(tuple(answers), 0.0)]  # beginnings: their items, and log p of the tokens so far
    done: list[tuple[float, int]] = []
    depth = 0
    while alive:
        rows = now.logits[:, -1].float().log_softmax(-1)
        grown = []
        for row, (items, before) in enumerate(alive):
            below: dict[int, list[int]] = {}
            for item in items:
                below.setdefault(answers[item][depth], []).append(item)
            gains = rows[row, torch.tensor(list(below), device=device)].tolist()
            for (token, here), gain in zip(below.items(), gains, strict=True):
                total = before + gain
                done += [(-total / (depth + 1), i) for i in here if len(answers[i]) == depth + 1]
                rest = tuple(i for i in here if len(answers[i]) > depth + 1)
                if rest:
                    grown.append((row, token, rest, total))
        grown = sorted(grown, key=lambda g: -g[3])[:beams]
        alive = [(rest, total) for _, _, rest, total in grown]
        if not alive:
            break
        now.cache.batch_select_indices(torch.tensor([row for row, *_ in grown], device=device))
        sees = torch.ones(len(alive), 1, width + depth + 1, dtype=torch.bool, device=device)
        sees[:, :, :width] = prompt["attention_mask"].bool()
        now = step(
            model,
            now.cache,
            {
                "input_ids": torch.tensor([[token] for _, token, *_ in grown], device=device),
                "attention_mask": additive(sees, weight_dtype(model)),
                "position_ids": (first + depth).expand(len(alive), 1),
            },
            last=True,
        )
        depth += 1
    return [item for _, item in sorted(done)[:k]]
