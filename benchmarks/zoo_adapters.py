"""Every kind of adapter of peft, on small models: what the engine is judged on, or refuses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from zoo_judge import VOCABULARY, Forward

from fudlr_ext import label_logits

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "pad_token_id": 0, "attention_dropout": 0.0,
}  # fmt: skip
LINEARS = ["q_proj", "v_proj", "up_proj"]
PARTS = ("lora_", "trainable_tokens_delta", "modules_to_save", ".bias")
LORA: dict[str, dict[str, Any]] = {
    "LoRA": {}, "rsLoRA": {"use_rslora": True}, "rank_pattern": {"rank_pattern": {"q_proj": 5}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 7}},
    "all linear layers": {"target_modules": "all-linear"},
    "layers_to_transform": {"layers_to_transform": [1]},
    "exclude_modules": {"exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "dropout": {"lora_dropout": 0.5}, "lora_bias": {"lora_bias": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 40, 4]},
    "init gaussian": {"init_lora_weights": "gaussian"},
    "init orthogonal": {"init_lora_weights": "orthogonal"},
    "init PiSSA": {"init_lora_weights": "pissa"}, "init OLoRA": {"init_lora_weights": "olora"},
    "init EVA": {"init_lora_weights": "eva"}, "init MiCA": {"init_lora_weights": "mica"},
    "bias=all": {"bias": "all"}, "bias=lora_only": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]}, "DoRA": {"use_dora": True},
    "QALoRA": {"use_qalora": True, "qalora_group_size": 8},
    "ALoRA": {"alora_invocation_tokens": [3]},
    "VeLoRA": {"velora_config": {}}, "tied LoRA": {
        "target_modules": ["embed_tokens"], "ensure_weight_tying": True},
}  # fmt: skip
OTHERS = {
    "TrainableTokensConfig": {"target_modules": ["embed_tokens"], "token_indices": [3, 40, 4]},
    "C3AConfig": {"block_size": 8}, "FourierFTConfig": {"n_frequency": 20},
    "WaveFTConfig": {"n_frequency": 20}, "RoadConfig": {"group_size": 8},
    "VBLoRAConfig": {"vector_length": 8, "num_vectors": 4}, "AdaptionPromptConfig": {
        "adapter_layers": 1, "adapter_len": 2, "target_modules": ["self_attn"]},
}  # fmt: skip
Case = tuple[nn.Module, Forward]


def llama(**changes: Any) -> nn.Module:
    """The base of most adapters."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "attention_bias": True, **changes}))


def adapted(base: nn.Module, config: Any) -> nn.Module:
    """Wrap in an adapter, none of whose parameters is zero."""
    model: nn.Module = get_peft_model(base, config)  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        drawn = "lora_B" in name or (p.requires_grad and any(part in name for part in PARTS))
        if drawn and ("lora_B" in name or "lora_embedding" in name or not p.any()):
            nn.init.normal_(p, std=0.2)
    return model


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield a name and what makes the model and its forward."""
    for name, options in LORA.items():

        def made(name: str = name, options: Any = options) -> Case:
            changes = {"tie_word_embeddings": True} if name == "tied LoRA" else {}
            config = LoraConfig(**{"r": 2, "target_modules": LINEARS, **options})
            return adapted(llama(**changes), config), label_logits

        yield name, made
    yield "Conv1D (GPT-2)", _conv1d
    yield "trainable_token_indices, tied head", _tied_tokens
    yield "MoE experts (target_parameters)", _experts
    for state in ("two adapters, one active", "two active", "disabled", "merged", "adapter_names"):
        yield state, lambda state=state: _two(state)
    for name, kind in sorted(vars(peft).items()):
        known = name.endswith("Config") and inspect.isclass(kind) and hasattr(kind, "peft_type")
        if known and "peft_type" in inspect.signature(kind).parameters and kind is not LoraConfig:
            yield name.removesuffix("Config"), lambda kind=kind: _other(kind)


def _conv1d() -> Case:
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4))
    targets = ["c_attn", "c_proj", "c_fc"]
    config = LoraConfig(r=2, target_modules=targets, fan_in_fan_out=True)
    return adapted(base, config), label_logits


def _tied_tokens() -> Case:
    config = LoraConfig(r=2, target_modules=LINEARS, trainable_token_indices=[3, 40, 4])
    return adapted(llama(tie_word_embeddings=True), config), label_logits


def _experts() -> Case:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    base = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, head_dim=8))
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return adapted(
        base, LoraConfig(r=2, target_modules=[], target_parameters=targets)
    ), label_logits


def _two(state: str) -> Case:
    model: Any = adapted(llama(), LoraConfig(r=2, target_modules=LINEARS))
    model.add_adapter("other", LoraConfig(r=3, target_modules=LINEARS))
    if state == "two active":
        model.base_model.set_adapter(["default", "other"])
    elif state == "disabled":
        model.base_model.disable_adapter_layers()
    elif state == "merged":
        model.merge_adapter()
    elif state == "adapter_names":
        names = ["default", "other", "default"]
        return model, lambda m, b: label_logits(
            m, {**b, "adapter_names": names[: len(b["labels"])]}
        )
    return model, label_logits


def _other(kind: Any) -> Case:
    fields = inspect.signature(kind).parameters
    options: dict[str, Any] = {"target_modules": LINEARS} if "target_modules" in fields else {}
    options |= {"task_type": "CAUSAL_LM"}
    for name, value in {"total_step": 10, "num_virtual_tokens": 2, "r": 2}.items():
        if name in fields and not (name == "r" and kind.__name__ == "OFTConfig"):
            options[name] = value
    options |= OTHERS.get(kind.__name__, {})
    return adapted(llama(), kind(**options)), label_logits
