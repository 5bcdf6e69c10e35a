"""MovieLens-100k as prompts of titles: histories of up to ten titles, at their real lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fudlr.config import RunConfig
from fudlr.data.fetch import load_ml100k
from fudlr.data.interactions import Samples
from fudlr.recommenders.templates import load_template
from fudlr.recommenders.titles import Titles
from fudlr.train.small_text import train_tokenizer
from transformers import LlamaForCausalLM
from workload import VOCABULARY, adapted, llama_config

BATCH, BATCHES = 16, 4


def title_batches(hidden: int) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A peft model of this width, and batches of random samples' prompts with their titles."""
    data = load_ml100k()
    config = RunConfig.model_validate({"data": {"window": 10}})
    titles = data.items["title"].to_list()
    tokenizer = train_tokenizer(load_template("bigrec"), titles, VOCABULARY)
    torch.manual_seed(0)
    model = adapted(LlamaForCausalLM(llama_config(hidden, len(tokenizer))))
    recommender = Titles(model, tokenizer, data, config)
    starts = data.user_starts[data.user]
    later = np.flatnonzero(np.arange(len(data)) > starts)
    chosen = np.random.default_rng(0).choice(later, BATCH * BATCHES, replace=False)
    samples = Samples(data, np.sort(chosen)[np.random.default_rng(1).permutation(len(chosen))])
    return model, list(recommender.batches(samples, BATCH))
