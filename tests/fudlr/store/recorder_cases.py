"""A small adapted model, its samples, and the plain way to the gradients that a recorder takes."""

from __future__ import annotations

import torch
from fudlr.config import RecordConfig
from fudlr.gradients import Projection
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from fudlr_ext import Engine, label_logits, label_loss

N, WIDTH, VOCABULARY = 24, 6, 31
EXACT = RecordConfig(dtype="float32", epochs="last")


def adapted_llama(
    dropout: float = 0.0, layers: int = 2, adapter: dict | None = None, **changes
) -> torch.nn.Module:
    """A random Llama whose adapter's B is not zero, so that A has a gradient."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            **changes,
        )
    )
    options = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "lora_dropout": dropout}
    model = get_peft_model(base, LoraConfig(**{**options, **(adapter or {})}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def samples() -> dict[str, torch.Tensor]:
    """N samples with one to four labels: a mean over tokens is not one over samples."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (N, WIDTH), generator=generator)
    labels = ids.clone()
    for row in range(N):
        labels[row, : WIDTH - 1 - row % 4] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def take(batch: dict[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: tensor[index] for name, tensor in batch.items()}


def losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return label_loss(label_logits(model, batch), batch)


def every_direction(model: torch.nn.Module) -> Projection:
    """Sketches under it are the whole gradients."""
    shapes = Engine(model).shapes
    wide = {name: torch.eye(a if "_B" in name else b) for name, (a, b) in shapes.items()}
    return Projection(shapes, wide)


def exact_rows(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """∇ℓ_i [n, d], by the engine, which has its own tests against autograd."""
    return Engine(model).sample_grads(label_logits, label_loss, batch)
