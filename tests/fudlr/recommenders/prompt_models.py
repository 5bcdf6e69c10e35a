"""Tokenizers and models that need no network: small, random, and the recommenders over them."""

from dataclasses import replace

import polars as pl
import torch
from fudlr import lora
from fudlr.config import LoraSettings, RunConfig, merge
from fudlr.data import leave_last_out, synthetic
from fudlr.recommenders import RECOMMENDERS, Prompted, load_template
from fudlr.train.pretrain import train_tokenizer
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

KINDS = sorted(RECOMMENDERS)
PROMPTED = [kind for kind in KINDS if RECOMMENDERS[kind].prompted]
ITEMS = 24
Prompted.nodes = 16  # so that trees are walked in several parts
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 8}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "sliding_window": 1024}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"head_dim": 8, "sliding_window": 1024}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
}
TEXT = {
    "item_tokens": None, "yes_no": "tallrec", "titles": "bigrec", "grounded": "bigrec",
    "semantic_ids": "minionerec",
}  # fmt: skip
CODES = [[f"<a_{j % 5}>", f"<b_{j // 5 % 2}>", f"<c_{j // 10}>"] for j in range(ITEMS)]


def split(n_users=30):
    """Small data; the items' table has a column of codes."""
    data = synthetic(n_users, ITEMS, seed=1, per_user=(8, 14))
    items = data.items.with_columns(codes=pl.Series(CODES))
    return leave_last_out(replace(data, items=items))


def config(kind, **changes):
    return merge(
        RunConfig(),
        {
            "recommender.kind": kind,
            "data.window": 5,
            "data.k": 5,
            **changes,
        },
    )


def tokenizer(kind, titles):
    found = train_tokenizer(load_template(TEXT[kind] or "bigrec"), titles, 420)
    if kind == "semantic_ids":
        found.add_tokens(sorted({code for own in CODES for code in own}))
    return found


def base(architecture="llama", vocabulary=500, seed=0, std=0.15, **changes):
    settings, model, own = ARCHITECTURES[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = model(settings(**{**SMALL, **own, "vocab_size": vocabulary, **changes}))
        for parameter in found.parameters():  # the usual 0.02 leaves attention all but uniform
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=std)
    return found.eval()


def adapted(model, targets=("q_proj", "v_proj", "down_proj"), rank=2, seed=3, **changes):
    """With an adapter whose B is not zero, so that all gradients are there."""
    if changes:
        options = {"r": rank, "lora_alpha": 4, "target_modules": list(targets), **changes}
        found = get_peft_model(model, LoraConfig(**options))
    else:
        found = lora.attach(model, LoraSettings(rank=rank, alpha=4, targets=targets), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    return found.eval()


def recommender(kind, data, model=None, **changes):
    titles = data.interactions.items["title"].to_list()
    words = tokenizer(kind, titles) if RECOMMENDERS[kind].prompted else None
    model = model or adapted(base())
    return RECOMMENDERS[kind](model, words, data.interactions, config(kind, **changes))
