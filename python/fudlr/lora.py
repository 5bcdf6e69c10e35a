"""The adapter in and out of peft: attached, loaded, saved; as a flat vector it is the engine's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fudlr.common.errors import ModelError
from fudlr.common.files import atomic_folder
from fudlr.config import LoraSettings
from fudlr_ext import Engine

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def attach(base: nn.Module, settings: LoraSettings, seed: int) -> peft.PeftModel:
    """A fresh LoRA adapter on `base`, its A drawn with `seed` and its B zero.

    Raises:
        ModelError: A target names no layer of the base.
    """
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        use_rslora=settings.rslora,
        task_type="CAUSAL_LM",
    )
    present = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    missing = [target for target in settings.targets if target not in present]
    if missing:
        linears = sorted(
            {n.rsplit(".", 1)[-1] for n, m in base.named_modules() if isinstance(m, nn.Linear)}
        )
        raise ModelError(
            f"LoRA on {', '.join(settings.targets)} was asked for",
            f"the model has no layer named {', '.join(missing)}",
            f"Choose from its linear layers: {', '.join(linears)}",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(base, config)


def load(base: nn.Module, folder: Path) -> peft.PeftModel:
    """The adapter in `folder` on `base`, trainable.

    Raises:
        ModelError: A file is missing or damaged, the adapter is for another base, or its weights
            are not finite.
    """
    asked = f"the adapter in {folder} was to be loaded"
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise ModelError(
                asked, f"{folder / name} is missing", "Name a folder that peft saved as safetensors"
            )
    try:
        model = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except (SafetensorError, json.JSONDecodeError, TypeError, KeyError) as error:
        raise ModelError(asked, f"a file of it is damaged ({error})", "Save it again") from error
    except (RuntimeError, ValueError) as error:
        found = f"it is not for this base model ({str(error).strip().splitlines()[0]})"
        raise ModelError(asked, found, "Name the base model that it was trained on") from error
    bad = [n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        raise ModelError(
            asked,
            f"{len(bad)} tensors hold NaN or infinity (the first: {bad[0]})",
            "Train again with a smaller learning rate, or restore a sound copy",
        )
    return model


def save(model: peft.PeftModel, folder: Path) -> None:
    """Write the adapter as peft's own files, safetensors; whole or not at all."""
    with atomic_folder(folder, "adapter") as temporary:
        model.save_pretrained(str(temporary), safe_serialization=True)
        # peft writes a card full of placeholders; the report says what there is to say.
        (temporary / "README.md").unlink(missing_ok=True)


def without_b(engine: Engine, vector: Tensor) -> Tensor:
    """`vector` [d] with every B zero: the base model's own function."""
    vector = vector.clone()
    for name, matrix in engine.unflatten(vector).items():
        if ".lora_B." in name:
            matrix.zero_()
    return vector


@contextmanager
def training(engine: Engine, *, checkpointing: bool) -> Iterator[None]:
    """Within it the model is as it trains: its mode, gradients for the adapter, checkpointing.

    Gradients of the adapter are gone after it.
    """
    model: Any = engine.model
    parameters = engine.parameters()
    was_training = model.training
    required = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    model.train()
    if checkpointing:
        # The reentrant kind loses the gradient of an adapter on frozen embeddings without a word.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.train(was_training)
        if checkpointing:
            model.gradient_checkpointing_disable()
        for p, flag in zip(parameters, required, strict=True):
            p.requires_grad_(flag)
            p.grad = None
