"""A small adapted model and its samples, which every process makes alike."""

from __future__ import annotations

import torch
from fudlr.gradients import Projection
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from fudlr_ext import Engine

N, WIDTH, VOCABULARY = 24, 6, 31
IDS = torch.arange(N)


def adapted_llama() -> torch.nn.Module:
    """A random Llama whose adapter's B is not zero, so that A has a gradient."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads))
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def samples() -> dict[str, torch.Tensor]:
    """N samples with one to four labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (N, WIDTH), generator=generator)
    labels = ids.clone()
    for row in range(N):
        labels[row, : WIDTH - 1 - row % 4] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def rows() -> list[dict[str, list[int]]]:
    batch = samples()
    return [{name: tensor[i].tolist() for name, tensor in batch.items()} for i in range(N)]


def take(batch: dict[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: tensor[index] for name, tensor in batch.items()}


def losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of each sample's label tokens [n], through the model as it is wrapped."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    found = cross_entropy(logits.mT, labels, reduction="none", ignore_index=-100)
    return found.sum(1) / (labels != -100).sum(1)


def every_direction(model: torch.nn.Module) -> Projection:
    """Sketches under it are the whole gradients."""
    shapes = Engine(model).shapes
    wide = {name: torch.eye(a if "_B" in name else b) for name, (a, b) in shapes.items()}
    return Projection(shapes, wide)
