"""A small Llama over item tokens, pretrained on older history, in a pretrained model's place."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from fudlr.common.errors import DataError
from fudlr.common.progress import track
from fudlr.config import ModelConfig
from fudlr.data.interactions import Split

PRETRAIN_BATCH = 64


def small_llama(n_items: int, window: int, config: ModelConfig, seed: int) -> LlamaForCausalLM:
    """A Llama whose tokens are the items 0 … M−1 and one for padding, M."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=n_items + 1,
                hidden_size=config.hidden,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=max(2 * window, 64),
                tie_word_embeddings=True,
                pad_token_id=n_items,
                bos_token_id=None,
                eos_token_id=None,
            )
        )


def pretrain(
    model: LlamaForCausalLM, split: Split, window: int, config: ModelConfig, seed: int
) -> list[float]:
    """Train all weights to predict each next item of the users' older history.

    Histories are cut into pieces of `window` + 1 items. Returns the mean loss of each epoch.
    """
    sequences = _sequences(split, window)
    if len(sequences) == 0:
        raise DataError(
            "a small model was to be pretrained",
            "no user has two interactions in the older part of the history",
            "Raise data.pretrain_share, or name a pretrained model with model.base",
        )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.pretrain_learning_rate, weight_decay=0.1
    )
    per_epoch = math.ceil(len(sequences) / PRETRAIN_BATCH)
    steps = config.pretrain_epochs * per_epoch
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    order = [
        (epoch, index)
        for epoch in range(config.pretrain_epochs)
        for index in torch.randperm(len(sequences), generator=generator).split(PRETRAIN_BATCH)
    ]
    losses = [0.0] * config.pretrain_epochs
    model.train()
    for epoch, index in track(order, steps, "pretrain the small model"):
        loss = _next_item_loss(model, sequences[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        scheduler.step()
        losses[epoch] += float(loss.detach()) * len(index) / len(sequences)
    model.eval()
    return losses


def _next_item_loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    pad = model.config.pad_token_id
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits[..., :pad]
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=pad)


def _sequences(split: Split, window: int) -> Tensor:
    item = split.interactions.item
    pad = split.interactions.n_items
    rows: list[NDArray[np.int64]] = []
    for _, start, stop in split.pretrain:
        for first in range(start, stop - 1, window):
            piece = item[first : min(first + window + 1, stop)]
            rows.append(np.pad(piece, (0, window + 1 - len(piece)), constant_values=pad))
    return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(-1, window + 1))
