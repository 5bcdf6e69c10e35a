"""Small Llamas in a pretrained model's place, trained on users' older history: no weights from
anywhere.

One reads items as tokens. The other reads prompts: its tokenizer is byte-level BPE, trained on the
prompt's words and the titles, and its weights are trained with the recommender's own loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fudlr.common.device import moved
from fudlr.common.errors import DataError
from fudlr.common.progress import track
from fudlr.config import ModelConfig
from fudlr.data.interactions import Samples, Split
from fudlr.recommenders import Recommender, Template

PRETRAIN_BATCH = 64
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
    model: LlamaForCausalLM, split: Split, window: int, config: ModelConfig, seed: int
) -> list[float]:
    """Train all weights to predict each next item of the users' older history.

    Histories are cut into pieces of `window` + 1 items. Returns the mean loss of each epoch.

    Raises:
        DataError: Nobody has two older interactions.
    """
    pad = split.interactions.n_items
    pieces: list[NDArray[np.int64]] = []
    for _, start, stop in split.pretrain:
        for first in range(start, stop - 1, window):
            piece = split.interactions.item[first : min(first + window + 1, stop)]
            pieces.append(np.pad(piece, (0, window + 1 - len(piece)), constant_values=pad))
    sequences = torch.from_numpy(np.array(pieces, dtype=np.int64).reshape(-1, window + 1))

    def loss(index: Tensor) -> Tensor:
        rows = moved(sequences[index], model.device)
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits[..., :pad]
        return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=pad)

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
    model: nn.Module, n: int, loss_of: Callable[[Tensor], Tensor], config: ModelConfig, seed: int
) -> list[float]:
    """Train `model` on the n pieces whose mean loss `loss_of` gives; the mean of each epoch."""
    if not n:
        raise DataError(
            "a small model was to be pretrained",
            "no user has two interactions in the older part of the history",
            "Raise data.pretrain_share, or name a pretrained model with model.base",
        )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.pretrain_learning_rate, weight_decay=0.1
    )
    steps = config.pretrain_epochs * math.ceil(n / PRETRAIN_BATCH)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    order = [
        (epoch, index)
        for epoch in range(config.pretrain_epochs)
        for index in torch.randperm(n, generator=generator).split(PRETRAIN_BATCH)
    ]
    losses = [0.0] * config.pretrain_epochs
    model.train()
    for epoch, index in track(order, steps, "pretrain the small model"):
        loss = loss_of(index)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        scheduler.step()
        losses[epoch] += float(loss.detach()) * len(index) / n
    model.eval()
    return losses
