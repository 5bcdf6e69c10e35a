"""The work that the engine and its rivals are timed on: Llama with LoRA, and batches for it."""

from __future__ import annotations

import copy
import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from fudlr_ext import Engine
from fudlr_ext import label_logits as engine_logits
from fudlr_ext import label_loss as engine_loss
from fudlr_ext.quantised import PACKS

SIZES = {512: (96, 16), 256: (64, 32), 128: (64, 64)}
"""Positions and samples for each hidden size: about as many multiply-adds a batch."""
BASES = (
    *("float32", "bfloat16", "float16", "bitsandbytes-4", "bitsandbytes-8"),
    *("torchao-int8", "torchao-int4"),
)
LABELS, VOCABULARY, VECTORS = 8, 4000, 8
FACE = (engine_logits, engine_loss)

Batch = dict[str, Tensor]


def llama_config(hidden: int, vocabulary: int = VOCABULARY) -> LlamaConfig:
    """Four layers, grouped queries, the usual 8/3 in the middle."""
    heads = hidden // (64 if hidden >= 256 else 32)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
    )


def adapted(base: nn.Module) -> Any:
    """LoRA of rank 8 on all seven linears; B is not zero, so that A has a gradient."""
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(base, config)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def held_as(model: nn.Module, base: str) -> nn.Module:
    """The model with its weights in `base`, one of BASES; quantised ones are its layers' alone."""
    if base.startswith("bitsandbytes"):
        bits = 4 if "4" in base else 8
        setattr(model, f"is_loaded_in_{bits}bit", True)  # peft asks for it
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if name.endswith("_proj"):
                    setattr(parent, name, _by_bitsandbytes(child, bits))
        return model
    if base.startswith("torchao"):
        ao: Any = importlib.import_module("torchao.quantization")
        way = ao.IntxWeightOnlyConfig(torch.int4) if "4" in base else ao.Int8WeightOnlyConfig()
        ao.quantize_(model, way, filter_fn=lambda _, name: name.endswith("_proj"))
        return model
    return model.to(getattr(torch, base))


def _by_bitsandbytes(linear: nn.Linear, bits: int) -> nn.Module:
    nn_: Any = importlib.import_module("bitsandbytes").nn
    shape, weight = (linear.in_features, linear.out_features, False), linear.weight.data
    if bits == 4:
        found = nn_.Linear4bit(*shape, compute_dtype=torch.float32, quant_type="nf4")
        found.weight = nn_.Params4bit(weight, False, quant_type="nf4")
        setattr(found, PACKS, False)  # a kernel for inference, whose gradient would be nothing
    else:
        found = nn_.Linear8bitLt(*shape, has_fp16_weights=False)
        found.weight = nn_.Int8Params(weight, False, has_fp16_weights=False)
    quantised: nn.Module = found.to("cpu")  # where it is quantised
    return quantised


def prompts(positions: int, samples: int, seed: int) -> Batch:
    """Random prompts of one length, the labels at their ends."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (samples, positions), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, -LABELS:] = ids[:, -LABELS:]
    return {"input_ids": ids, "labels": labels}


@dataclass
class Work:
    """One model and batch, and the k vectors: gradients of k other prompts, or what a rival makes.

    Attributes:
        hidden: The model's width.
        seed: Of the weights.
        base: What these are held in, one of BASES; the adapter's are float32.
        frozen: The base model, without an adapter.
        model: The peft model.
        engine: The engine on it.
        batch: n prompts.
        queries: k prompts.
    """

    hidden: int
    seed: int = 0
    base: str = "float32"
    frozen: Any = field(init=False)
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        base = held_as(LlamaForCausalLM(llama_config(self.hidden)), self.base)
        self.frozen = copy.deepcopy(base).eval().requires_grad_(False)
        self.model = adapted(base)
        self.engine = Engine(self.model)
        positions, samples = SIZES[self.hidden]
        self.batch = prompts(positions, samples, 1)
        self.queries = prompts(positions, VECTORS, 2)
        self.vectors = self.engine.sample_grads(*FACE, self.queries)

    def copied(self) -> Any:
        """The peft model again, for a rival to change as it likes."""
        return copy.deepcopy(self.model)

    def flat(self, named: dict[str, Tensor]) -> Tensor:
        """Rows [n, d] in the engine's order from a rival's [n, ...] by parameter name."""
        own = {name.replace(".default.weight", ".weight"): rows for name, rows in named.items()}
        return torch.cat([own[name].flatten(1) for name in self.engine.names], 1)

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """The inverse of `flat`, by the model's own parameter names."""
        found = self.engine.unflatten(vectors)
        return {k.replace(".weight", ".default.weight"): v for k, v in found.items()}


def at_labels(model: Any, batch: Batch) -> Tensor:
    """Logits [n, 8, vocabulary] before the labels alone, by the model's own code."""
    end = batch["input_ids"].shape[1] - 1
    keep = torch.arange(end - LABELS, end)
    found = model(input_ids=batch["input_ids"], logits_to_keep=keep, use_cache=False)
    return found.logits  # type: ignore[no-any-return]


def losses(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy over each sample's labels, [n]."""
    target = batch["labels"][:, -LABELS:]
    found = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return found.view_as(target).mean(1)


def peft_step(model: Any, batch: Batch) -> None:
    """Forward and backward as a training step makes them, the unit of all costs."""
    model.zero_grad(set_to_none=True)
    model(**batch, use_cache=False).loss.backward()


def peft_at_labels(model: Any, batch: Batch) -> None:
    """The same with logits at the labels alone."""
    model.zero_grad(set_to_none=True)
    losses(at_labels(model, batch), batch).sum().backward()


def frozen_pass(model: Any, batch: Batch) -> None:
    """The base model forward and backward to its embeddings, logits at the labels alone.

    This is the limit of whatever leaves the trunk's own code as it is.
    """
    x = model.model.embed_tokens(batch["input_ids"]).detach().requires_grad_()
    end = x.shape[1] - 1
    keep = torch.arange(end - LABELS, end)
    logits = model(inputs_embeds=x, logits_to_keep=keep, use_cache=False).logits
    torch.autograd.grad(losses(logits, batch).sum(), x)
