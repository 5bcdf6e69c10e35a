"""Training on users' older history, before there is an adapter: of small Llamas that are made on
the spot, and of a pretrained model's new item tokens.

One small Llama reads items as tokens. The other reads prompts: its tokenizer is byte-level BPE,
trained on the prompt's words and the titles, and its weights are trained with the recommender's own
loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fudlr.common.device import moved
from fudlr.common.errors import DataError
from fudlr.common.progress import track
from fudlr.config import ModelConfig
from fudlr.data.interactions import Samples, Split
from fudlr.recommenders import Recommender, Template

PRETRAIN_BATCH = 64
SMALL_EPOCHS, SMALL_RATE = 6, 3e-3
KNOWN_RATE, NEW_ROWS = 5e-5, 20.0
"""Of a model that knows something, and times that for its embeddings, where the items are new."""
POSITIONS = 4096
VOCABULARY = 1000  # tokens at most


def small_llama(n_items: int, window: int, config: ModelConfig, seed: int) -> LlamaForCausalLM:
    """A Llama whose tokens are the items 0 … M−1 and one for padding, M."""
    return _llama(
        config,
        seed,
        vocab_size=n_items + 1,
        max_position_embeddings=max(2 * window, 64),
        pad_token_id=n_items,
        eos_token_id=None,
    )


def small_text_llama(tokenizer: Any, config: ModelConfig, seed: int) -> LlamaForCausalLM:
    """A Llama of the configuration's sizes over the tokenizer's tokens."""
    return _llama(
        config,
        seed,
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _llama(config: ModelConfig, seed: int, **tokens: Any) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=config.hidden,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                tie_word_embeddings=True,
                bos_token_id=None,
                **tokens,
            )
        )


def train_tokenizer(template: Template, titles: list[str], vocabulary: int) -> Any:
    """A tokenizer for the words of `template` and for `titles`; the same for the same texts."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fields = (template.system or "", template.prompt, template.answer_yes, template.answer_no)
    written = [template.answer.replace("{title}", title) for title in titles]
    plain.train_from_iterator([*fields, *written], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def pretrain(
    model: PreTrainedModel,
    tokens: Tensor,
    split: Split,
    window: int,
    config: ModelConfig,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> list[float]:
    """Train all weights to predict each next item of the users' older history.

    Histories are cut into pieces of `window` + 1 items. Returns the mean loss of each epoch.

    Args:
        model: A causal LM with a token for each item, in float32.
        tokens: Of the items, [M], one after the other.
        split: Its `pretrain` is what is trained on.
        window: Items that are seen at most.
        config: Epochs and learning rate.
        seed: Of the order.
        dtype: Of the matrix products, where autocast is to take another than float32.

    Raises:
        DataError: Nobody has two older interactions.
    """
    n_items, first = len(tokens), int(tokens[0])
    none = -1
    pieces: list[NDArray[np.int64]] = []
    for _, start, stop in split.pretrain:
        for at in range(start, stop - 1, window):
            piece = split.interactions.item[at : min(at + window + 1, stop)]
            pieces.append(np.pad(piece, (0, window + 1 - len(piece)), constant_values=none))
    sequences = torch.from_numpy(np.array(pieces, dtype=np.int64).reshape(-1, window + 1))
    device, head = model.device, cast(Any, model.get_output_embeddings())

    def loss(index: Tensor) -> Tensor:
        rows = moved(sequences[index], device)
        # What follows the last item is not seen before it, so that any token serves there.
        ids = torch.where(rows[:, :-1] == none, first, rows[:, :-1] + first)
        narrow = dtype != torch.float32
        with torch.autocast(device.type, dtype) if narrow else nullcontext():
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            logits = linear(states, head.weight[first : first + n_items])
        target = rows[:, 1:].flatten()
        return cross_entropy(logits.float().flatten(0, 1), target, ignore_index=none)

    return _train(model, len(sequences), loss, config, seed)


def pretrain_text(
    recommender: Recommender, split: Split, per_user: int, config: ModelConfig, seed: int
) -> list[float]:
    """Train all weights of the recommender's model on older history, at most `per_user` targets of
    each user, the latest; returns the mean loss of each epoch.

    Raises:
        DataError: Nobody has two older interactions.
    """
    ranges = [np.arange(max(a + 1, b - per_user), b) for _, a, b in split.pretrain]
    samples = Samples(split.interactions, np.concatenate([*ranges, np.arange(0)]))

    def loss(index: Tensor) -> Tensor:
        batch = recommender.batch(samples.take(index.numpy()))
        return recommender.loss(recommender.forward(recommender.model, batch), batch).mean()

    return _train(recommender.model, len(samples), loss, config, seed)


def _train(
    model: nn.Module,
    n: int,
    loss_of: Callable[[Tensor], Tensor],
    config: ModelConfig,
    seed: int,
) -> list[float]:
    """Train `model` on the n pieces whose mean loss `loss_of` gives; the mean of each epoch."""
    if not n:
        raise DataError(
            "a model was to be pretrained",
            "no user has two interactions in the older part of the history",
            "Raise data.pretrain_share, or name a pretrained model with model.base",
        )
    small = config.base == "small-llama"
    epochs = config.pretrain_epochs if config.pretrain_epochs is not None else SMALL_EPOCHS
    rate = config.pretrain_learning_rate or (SMALL_RATE if small else KNOWN_RATE)
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    tables = {each.weight for each in ends}  # one where they are tied
    body = [each for each in model.parameters() if each not in tables]
    groups: list[dict[str, Any]] = [
        {"params": body},
        {"params": [*tables], "lr": rate if small else NEW_ROWS * rate},
    ]
    decay = 0.1 if small else 0.0
    # Fused steps are several times faster on a large model; small ones stay as figures have them.
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=not small)
    steps = epochs * math.ceil(n / PRETRAIN_BATCH)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    order = [
        (epoch, index)
        for epoch in range(epochs)
        for index in torch.randperm(n, generator=generator).split(PRETRAIN_BATCH)
    ]
    losses = [0.0] * epochs
    model.train()
    for epoch, index in track(order, steps, "pretrain the base model"):
        loss = loss_of(index)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        scheduler.step()
        losses[epoch] += float(loss.detach()) * len(index) / n
    model.eval()
    return losses
