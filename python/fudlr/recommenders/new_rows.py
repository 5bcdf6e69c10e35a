"""Rows of embedding and output matrix for tokens that a pretrained model does not know yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

APART = 0.05
"""Offset of a token made of the same tokens as another, over the size of its row."""


def start_rows(model: nn.Module, ids: Tensor, made_of: Sequence[Sequence[int]]) -> int:
    """Let each new token start as the mean of some known ones, so that their meaning carries over.

    The rows of an untied output head are filled likewise; both tables grow where they have to.
    Tokens made of the same ones, in whatever order, would start as one: all but the first get a
    small random offset of their own, without which no training could tell them apart.

    Args:
        model: The base model, before an adapter is attached.
        ids: Of the new tokens, [K].
        made_of: The known tokens that each is made of, [K] lists; none may be empty.

    Returns:
        How many were told apart by an offset.
    """
    first: dict[frozenset[tuple[int, float]], int] = {}
    again = []
    for row, tokens in enumerate(made_of):
        shares = frozenset((token, n / len(tokens)) for token, n in Counter(tokens).items())
        if first.setdefault(shares, row) != row:
            again.append(row)
    needed = int(ids.max()) + 1
    if model.get_input_embeddings().weight.shape[0] < needed:  # type: ignore[operator]
        model.resize_token_embeddings(needed, mean_resizing=False)  # type: ignore[operator]
    tables = [model.get_input_embeddings().weight]  # type: ignore[operator]
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    noise = torch.randn(len(again), tables[0].shape[1], generator=torch.Generator().manual_seed(0))
    places = ids.tolist()
    with torch.no_grad():
        for table in tables:
            for place, tokens in zip(places, made_of, strict=True):
                known = torch.tensor(tokens, device=table.device)
                table[place] = table[known].float().mean(0)
            for row, offset in zip(again, noise.to(table.device), strict=True):
                own = table[places[row]].float()
                table[places[row]] = own + APART * own.square().mean().sqrt() * offset
    return len(again)
