"""A small Llama that reads prompts, in a pretrained model's place: no weights from anywhere.

Its tokenizer is byte-level BPE, trained on the prompt's words and the titles. Its weights are
trained on the users' older halves with the recommender's own loss.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fudlr.common.errors import DataError
from fudlr.common.progress import track
from fudlr.config import ModelConfig
from fudlr.data.interactions import Samples, Split
from fudlr.recommenders import Recommender, Template
from fudlr.train.pretrain import PRETRAIN_BATCH

POSITIONS = 4096
VOCABULARY = 1000  # tokens at most


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


def small_text_llama(tokenizer: Any, config: ModelConfig, seed: int) -> LlamaForCausalLM:
    """A Llama of the configuration's sizes over the tokenizer's tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=POSITIONS,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )


def pretrain_text(
    recommender: Recommender, split: Split, per_user: int, config: ModelConfig, seed: int
) -> list[float]:
    """Train all weights of the recommender's model on older history; the mean loss of each epoch.

    Args:
        recommender: Over the model without an adapter.
        split: Its pretraining part is used alone.
        per_user: At most so many targets of each user, the latest.
        config: Epochs, learning rate, batch.
        seed: Of the order.

    Raises:
        DataError: Nobody has two older interactions.
    """
    ranges = [np.arange(max(a + 1, b - per_user), b) for _, a, b in split.pretrain]
    samples = Samples(split.interactions, np.concatenate([*ranges, np.arange(0)]))
    if not len(samples):
        raise DataError(
            "a small model was to be pretrained",
            "no user has two interactions in the older part of the history",
            "Raise data.pretrain_share, or name a pretrained model with model.base",
        )
    model = recommender.model
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.pretrain_learning_rate, weight_decay=0.1
    )
    steps = config.pretrain_epochs * math.ceil(len(samples) / PRETRAIN_BATCH)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    losses = [0.0] * config.pretrain_epochs
    order = [
        (epoch, index)
        for epoch in range(config.pretrain_epochs)
        for index in torch.randperm(len(samples), generator=generator).split(PRETRAIN_BATCH)
    ]
    model.train()
    for epoch, index in track(order, steps, "pretrain the small model"):
        batch = recommender.collate(samples.take(index.numpy()))
        loss = recommender.loss(recommender.forward(model, batch), batch).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        scheduler.step()
        losses[epoch] += float(loss.detach()) * len(index) / len(samples)
    model.eval()
    return losses
