"""The model run for scores: logits in float32, and prompts a part at a time with kept keys.

A row is a prompt, padded on the left, and tokens after it; a pass over its columns from `skip` on
gets the columns before from the cache. Several continuations of one prompt fork its cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import DynamicCache

Layers = list[tuple[Tensor, Tensor]]
NONE = -100  # in place of a token where a row has ended; also what labels have where there is none


@contextmanager
def float32_head(model: nn.Module, positions: Tensor | None = None) -> Iterator[None]:
    """Within it the output matrix is applied in float32, where the model's weights have less.

    Logits of 16 bits are equal for items that are not: their differences, and the lists made of
    them, would depend on the order of the items. What the model does to its logits afterwards
    (scaling, soft caps) is then in float32 too. A quantised output matrix stays as it is.

    Args:
        model: A causal language model.
        positions: [n, L], where logits are wanted; everywhere if None.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    handles = []
    if positions is not None:

        def at_positions(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
            (hidden,) = given
            return (hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[2])),)

        handles.append(head.register_forward_pre_hook(at_positions))
    head = getattr(head, "base_layer", head)  # of an adapter, which adds to it in float32

    def exact(module: Any, given: tuple[Tensor], out: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias.float()
        return linear(given[0].float(), module.weight.float(), bias)

    if type(head) is nn.Linear and head.weight.dtype in (torch.bfloat16, torch.float16):
        handles.append(head.register_forward_hook(exact))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits_at(model: nn.Module, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
    """Logits [n, L, vocabulary] at `positions` [n, L] alone."""
    with float32_head(model, positions):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


@dataclass(frozen=True)
class Step:
    """What a pass gave.

    Attributes:
        logits: [n, t, vocabulary], or [n, 1, vocabulary] of the last column.
        states: Last hidden states [n, t, hidden], as the output matrix gets them, where asked for.
        cache: Of all columns up to here.
    """

    logits: Tensor
    states: Tensor
    cache: Any


def step(
    model: nn.Module, cache: Any, row: dict[str, Tensor], last: bool = False, states: bool = False
) -> Step:
    """Run a causal language model over the columns after those in its cache.

    Args:
        model: In evaluation mode.
        cache: Of the columns before; it grows.
        row: `input_ids` and `position_ids` [n, t], and the mask over all columns.
        last: Whether the last column's logits suffice.
        states: Whether hidden states are wanted too.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        kept.append(out.last_hidden_state)

    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    names = inspect.signature(type(decoder).forward).parameters
    # It is `cache` from transformers 5.24 on.
    name = "cache" if "cache" in names else "past_key_values"
    inputs: dict[str, Any] = {**row, name: cache}
    handle = decoder.register_forward_hook(keep) if states else None
    try:
        with float32_head(model):
            out = model(**inputs, use_cache=True, logits_to_keep=int(last))
    finally:
        if handle is not None:
            handle.remove()
    found = next(out[key] for key in ("cache", "past_key_values") if key in out)
    return Step(out.logits, kept[0] if kept else out.logits[:, :0], found)


def columns(row: dict[str, Tensor], skip: int) -> dict[str, Tensor]:
    """A row's columns from `skip` on, those before being in the cache; the mask is over all."""
    return {k: v if k == "attention_mask" else v[:, skip:] for k, v in row.items()}


def layers_of(cache: Any) -> Layers:
    """Keys and values of every layer, [n, heads, columns, width]."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def fork(layers: Layers, others: Layers, columns: list[int]) -> DynamicCache:
    """A cache that begins with `layers` and `columns` of `others`, and grows by itself."""
    found = DynamicCache()
    wanted = torch.tensor(columns, device=layers[0][0].device)
    for number, pairs in enumerate(zip(layers, others, strict=True)):
        keys, values = (
            torch.cat([own, other.index_select(2, wanted)], 2) if columns else own
            for own, other in zip(*pairs, strict=True)
        )
        found.update(keys, values, number)
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
