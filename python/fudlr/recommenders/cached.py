"""Prompts with what follows them, run a part at a time: keys and values of the prompt are kept.

A row is a prompt, padded on the left, and tokens after it; a pass over its columns from `skip` on
gets the columns before from the cache. Several continuations of one prompt fork its cache.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

NONE = -100  # in place of a token where a row has ended; also what labels have where there is none


@dataclass(frozen=True)
class Step:
    """What a pass gave.

    Attributes:
        logits: [n, t, vocabulary], or [n, 1, vocabulary] of the last column.
        states: Last hidden states [n, t, hidden], as the output matrix gets them.
        cache: Of all columns up to here.
    """

    logits: Tensor
    states: Tensor
    cache: Any


def step(
    model: nn.Module, row: dict[str, Tensor], cache: Any, skip: int = 0, last: bool = False
) -> Step:
    """Run a causal language model over the columns of `row` from `skip` on.

    Args:
        model: In evaluation mode.
        row: `input_ids`, `attention_mask`, `position_ids` [n, t].
        cache: Of the `skip` columns before; it grows.
        skip: Columns that are in the cache.
        last: Whether the last column's logits suffice.
    """
    states: list[Tensor] = []
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    handle = decoder.register_forward_hook(
        lambda module, given, out: states.append(out.last_hidden_state)
    )
    try:
        out = model(
            input_ids=row["input_ids"][:, skip:],
            attention_mask=row["attention_mask"],
            position_ids=row["position_ids"][:, skip:],
            logits_to_keep=int(last),
            **with_cache(model, cache),
        )
    finally:
        handle.remove()
    return Step(out.logits, states[0], cache_of(out))


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Arguments that hand `cache` to a model: it is `cache` from transformers 5.24 on."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    names = inspect.signature(type(decoder).forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache, "use_cache": True}


def cache_of(out: Any) -> Any:
    """The cache in what a model gave, whatever it is called."""
    return out["cache"] if "cache" in out else out["past_key_values"]


def fork(cache: Any) -> DynamicCache:
    """A cache that begins with what `cache` has, and grows by itself."""
    found = DynamicCache()
    for number, layer in enumerate(cache.layers):
        found.update(layer.keys, layer.values, number)
    return found


def followed(
    prompt: dict[str, Tensor], tokens: Tensor, pad: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of prompts with tokens [n, w] after them, and the column where each ends, [n, 1].

    Args:
        prompt: `input_ids`, `attention_mask`, `position_ids` [n, t], padded on the left.
        tokens: `NONE` where there is none, from some place on.
        pad: The token for padding.
    """
    ids, real = prompt["input_ids"], tokens != NONE
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    row = {
        "input_ids": torch.cat([ids, torch.where(real, tokens, pad)], 1),
        "attention_mask": torch.cat([prompt["attention_mask"], real.to(ids.dtype)], 1),
        "position_ids": torch.cat(
            [prompt["position_ids"], prompt["position_ids"][:, -1:] + places], 1
        ),
    }
    return row, ids.shape[1] - 1 + real.sum(1, keepdim=True)
