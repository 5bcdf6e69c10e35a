"""The adapter in and out of peft: attached, loaded, saved; as a flat vector it is the engine's."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fudlr.common.errors import ModelError
from fudlr.common.files import atomic_folder
from fudlr.config import LoraSettings
from fudlr_ext import Engine

ALL_LINEAR = "all-linear"
"""peft's name for all linear layers but the output matrix."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Options of peft's that leave the layer's function what the engine takes it for, or tell nothing
# of it. All others must be as peft has them by default.
PLAIN = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
    *("lora_dropout", "fan_in_fan_out", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("layers_to_transform", "layers_pattern", "init_lora_weights", "megatron_core"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying", "eva_config"),
    *("lora_bias", "trainable_token_indices"),
}
OF_ADAPTERS = (".lora_", ".modules_to_save.", "trainable_tokens")
"""Parts of the names of an adapter's tensors in a model."""
# Starts that touch A and B alone; the others (PiSSA, OLoRA, CorDA, LoftQ, ...) move W too.
HARMLESS_STARTS = {"gaussian", "eva", "orthogonal"}


def attach(
    base: nn.Module, settings: LoraSettings, seed: int, tokens: Sequence[int] = ()
) -> peft.PeftModel:
    """A fresh LoRA adapter on `base`, its A drawn with `seed` and its B zero.

    Args:
        base: The model.
        settings: Rank, scale, layers.
        seed: Of A.
        tokens: Whose rows of embedding and output matrix are trained with it, from what they are.

    Raises:
        ModelError: A target names no layer of the base.
    """
    targets = list(settings.targets)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        task_type="CAUSAL_LM",
        trainable_token_indices=_tables(base, tokens),
    )
    present = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    missing = [target for target in targets if target not in {*present, ALL_LINEAR}]
    if missing:
        linear = (nn.Linear, Conv1D)
        known = {n.rsplit(".", 1)[-1] for n, m in base.named_modules() if isinstance(m, linear)}
        raise ModelError(
            f"LoRA on {', '.join(targets)} was asked for",
            f"the model has no layer named {', '.join(missing)}",
            f"Set lora.targets to {ALL_LINEAR}, or choose from its linear layers: "
            f"{', '.join(sorted(known))}",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(base, config)


def _tables(base: nn.Module, tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """The tokens by the names of the layers that hold their rows; a tied head follows by itself."""
    if not tokens:
        return None
    own: Any = base
    names = {id(module): name for name, module in base.named_modules()}
    embedding, head = own.get_input_embeddings(), own.get_output_embeddings()
    found = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    return {names[id(each)].rpartition(".")[2]: list(tokens) for each in found}


def adapter_folder(folder: Path) -> Path:
    """The adapter's folder: itself, or the last checkpoint of a Trainer's output folder.

    Raises:
        ModelError: There is no adapter.
    """
    if (folder / ADAPTER_FILES[0]).is_file():
        return folder
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if (path / ADAPTER_FILES[0]).is_file() and path.name.partition("-")[2].isdecimal()
    ]
    if not found:
        raise ModelError(
            f"the adapter in {folder} was to be taken",
            f"{folder / ADAPTER_FILES[0]} is missing, and no checkpoint-N there has one",
            "Name a folder that peft or a Trainer saved",
        )
    return max(found, key=lambda path: int(path.name.partition("-")[2]))


def load(base: nn.Module, folder: Path) -> peft.PeftModel:
    """The adapter in `folder`, or in its last checkpoint, on `base`, trainable; equal to what peft
    itself loads, or refused.

    Raises:
        ModelError: A file is missing or damaged, the adapter is for another base, is no plain LoRA,
            fits the base in part alone, or its weights are not finite.
    """
    folder = adapter_folder(folder)
    asked = f"the adapter in {folder} was to be loaded"
    if not (folder / ADAPTER_FILES[1]).is_file():
        found = f"{folder / ADAPTER_FILES[1]} is missing"
        raise ModelError(asked, found, "Name a folder that peft saved as safetensors")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        _refuse_variants(config, asked)
        config.inference_mode = False
        # The base is the one at hand: peft would look for the named one, over the network too.
        config.base_model_name_or_path = None
        model = peft.get_peft_model(base, config)
        assert isinstance(model, peft.PeftModel)
        with safe_open(folder / ADAPTER_FILES[1], framework="pt") as file:
            given = {key for key in file.keys() if not _of_the_base(key, file, model)}  # noqa: SIM118
        fitting = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
        _refuse_part(given, fitting, asked)
        model.load_adapter(str(folder), "default", is_trainable=True, torch_device="cpu")
    except (
        OSError,
        SafetensorError,
        json.JSONDecodeError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        UnicodeError,
        re.error,  # of target_modules, a regular expression where it is a string
    ) as error:
        raise ModelError(asked, f"a file of it is damaged ({error})", "Save it again") from error
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        found = f"it is not for this base model ({' '.join(lines[:2])})"
        raise ModelError(asked, found, "Name the base model that it was trained on") from error
    plain = ((n, p) for n, p in model.named_parameters() if type(p) is nn.Parameter)
    bad = [n for n, p in plain if not bool(torch.isfinite(p).all())]
    if bad:
        raise ModelError(
            asked,
            f"{len(bad)} tensors hold NaN or infinity (the first: {bad[0]})",
            "Train again with a smaller learning rate, or restore a sound copy",
        )
    return model


def _refuse_variants(config: Any, asked: str) -> None:
    """Refuse what is not y = x Wᵀ + scaling · (x Aᵀ) Bᵀ on an unchanged base, by its name."""
    if not isinstance(config, peft.LoraConfig) or type(config) is not peft.LoraConfig:
        raise ModelError(
            asked,
            f"it is {config.peft_type}, and only LoRA is known",
            "Train a LoRA adapter on the same data",
        )
    usual = peft.LoraConfig()
    found = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(peft.LoraConfig)
        if field.name not in PLAIN and _another(*(getattr(c, field.name) for c in (config, usual)))
    ]
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower() not in HARMLESS_STARTS:
        found.append(f"init_lora_weights={start!r}, which changes the base model's own weights")
    if found:
        remedy = (
            "Train it with the usual options; PiSSA, OLoRA and their kin become plain LoRA by "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
        if config.modules_to_save:
            remedy = "Train LoRA alone, and rows of new tokens with trainable_token_indices"
        raise ModelError(asked, f"it is no plain LoRA: {', '.join(found)}", remedy)


def _another(value: Any, usual: Any) -> bool:
    """Whether an option was chosen: trainers write none as `null`, `[]` or `{}`."""
    return bool(value != usual and (value or usual))


def _of_the_base(key: str, file: Any, model: nn.Module) -> bool:
    """Whether a tensor is the base's own, which peft saves beside an adapter on an embedding."""
    if not key.endswith(".base_layer.weight"):
        return False
    found = file.get_tensor(key)
    try:
        own = model.get_parameter(key)
    except AttributeError:
        return False
    return own.shape == found.shape and torch.equal(own.detach().to(found), found)


def _refuse_part(given: set[str], fitting: set[str], asked: str) -> None:
    """Refuse tensors without a place in the model, and places without a tensor."""
    extra, missing = sorted(given - fitting), sorted(fitting - given)
    if extra or missing:
        said = [
            f"{len(keys)} {what} ({', '.join(keys[:2])}{', …' if len(keys) > 2 else ''})"
            for keys, what in (
                (extra, f"of its {len(given)} tensors have no place in this model"),
                (missing, f"of the {len(fitting)} tensors that the model needs are not in it"),
            )
            if keys
        ]
        raise ModelError(
            asked, "; ".join(said), "Name the base model that it was trained on, or save it again"
        )


def save(model: peft.PeftModel, folder: Path) -> None:
    """Write the adapter as peft's own files, safetensors; whole or not at all."""
    state = model.state_dict().items()
    host = {name: each.cpu() for name, each in state if any(part in name for part in OF_ADAPTERS)}
    with atomic_folder(folder, "adapter") as temporary:
        # Embeddings are no part of an adapter here; to see whether they changed, peft would ask the
        # hub for the base model's configuration.
        model.save_pretrained(
            str(temporary), safe_serialization=True, save_embedding_layers=False, state_dict=host
        )
        # peft writes a card full of placeholders; the report says what there is to say.
        (temporary / "README.md").unlink(missing_ok=True)


def without_b(engine: Engine, vector: Tensor) -> Tensor:
    """`vector` [d] with every B zero, and tokens as they were: the base model's own function."""
    vector = vector.clone()
    for name, matrix in engine.unflatten(vector).items():
        if ".lora_B." in name or name.endswith(".lora_embedding_B"):
            matrix.zero_()
        elif name.endswith(".trainable_tokens_delta"):
            layer: Any = engine.model.get_submodule(name.rpartition(".")[0])
            matrix.copy_(layer.trainable_tokens_original[engine.adapter])
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
