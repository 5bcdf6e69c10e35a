"""The manifest: what a store is, what it was made from, and its shards, under a checksum."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fudlr.common.digest import digest
from fudlr.common.errors import StoreError, UsageError
from fudlr.common.files import write_json
from fudlr.gradients.store.shards import VERSION, Shard, open_regular, refuse

MANIFEST = "manifest.json"
TRAINING = "training.safetensors"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LORA = re.compile(r"\.(lora_\w+|trainable_tokens_delta)(\.|$)")


@dataclass(frozen=True)
class Binding:
    """Digests (sha256, hexadecimal) of all that determines a store's rows.

    Attributes:
        model: The frozen weights.
        adapter: The LoRA parameters that the recording ended at.
        data: The samples.
        order: How ids number the samples, and where it matters the batches' order.
    """

    model: str
    adapter: str
    data: str
    order: str

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str) or not _SHA256.fullmatch(value):
                raise UsageError(
                    f"a store was to be bound to a {name} by its sha256",
                    f"{value!r} is not 64 hexadecimal digits",
                    "Use fudlr.gradients.store.digest(...)",
                )

    def differences(self, other: Binding) -> list[str]:
        """Which of model, adapter, data and order are not the same."""
        names = (entry.name for entry in fields(self))
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def model_fingerprint(model: nn.Module) -> str:
    """sha256 of a model's weights without its LoRA adapters: the same with or without one loaded.

    Args:
        model: A peft model; names of weights count as they are in it.
    """
    frozen = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and not _LORA.search(name)
    }
    return digest(frozen)


@dataclass(frozen=True)
class Recipe:
    """How a training made its steps from gradients, so far as the unrolled update repeats it.

    With g = clip(Σ u_i g_i + l2 (θ − θ₀)), PyTorch's Adam or AdamW at the recorded rates.

    Attributes:
        optimiser: `Adam` or `AdamW`.
        betas, eps, weight_decay: Its options; decay is added to g in Adam, and taken off θ in
            AdamW.
        l2: λ of a pull towards the start of the training.
        clip: Largest norm of the gradient over all LoRA parameters; None for any.
    """

    optimiser: str = "Adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    l2: float = 0.0
    clip: float | None = None

    @classmethod
    def of(cls, optimiser: torch.optim.Optimizer, *, clip: float | None = None) -> Recipe:
        """That of a PyTorch optimiser.

        Raises:
            UsageError: One whose steps cannot be repeated, by name.
        """
        inner = unwrapped(optimiser)
        names = ("betas", "eps", "weight_decay", "amsgrad", "maximize")
        groups = [group for group in inner.param_groups if group["params"]]
        options: list[dict[str, Any]] = [{key: group.get(key) for key in names} for group in groups]
        chosen, found = options[0], ""
        if type(inner) not in (torch.optim.Adam, torch.optim.AdamW):
            found = f"the optimiser is {type(inner).__module__}.{type(inner).__name__}"
        elif any(other != chosen for other in options):
            found = "its groups of parameters have different options"
        elif chosen["amsgrad"] or chosen["maximize"]:
            found = "it is set to amsgrad or maximize"
        if found:
            raise UsageError(
                "a whole training was to be recorded, to be unrolled later",
                found,
                "Train with torch.optim.Adam or AdamW and their usual options, or record the last "
                "epoch alone, which serves the closed form",
            )
        first, second = map(float, chosen["betas"])
        numbers = float(chosen["eps"]), float(chosen["weight_decay"])
        return cls(type(inner).__name__, (first, second), *numbers, clip=clip)

    def rate(self, optimiser: torch.optim.Optimizer) -> float:
        """The learning rate of the step that `optimiser` is about to make.

        Raises:
            UsageError: It has several, or options that are no longer the recipe's.
        """
        now = replace(Recipe.of(optimiser, clip=self.clip), l2=self.l2)
        rates = {float(group["lr"]) for group in optimiser.param_groups if group["params"]}
        changed = [f.name for f in fields(self) if getattr(self, f.name) != getattr(now, f.name)]
        found = f"its {' and '.join(changed)} changed on the way" if changed else ""
        if len(rates) > 1:
            found = f"its groups of parameters have several learning rates ({sorted(rates)})"
        if found:
            raise UsageError(
                f"a step of {self.optimiser} was to be recorded, to be unrolled later",
                found,
                "Schedule the learning rate alone, one for all parameters (cycle_momentum=False in "
                "OneCycleLR and CyclicLR), or record the last epoch alone, for the closed form",
            )
        return rates.pop()


def unwrapped(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser itself, within a wrapper such as accelerate's."""
    return getattr(optimiser, "optimizer", optimiser)


@dataclass(frozen=True)
class Manifest:
    """What a store is.

    Attributes:
        course: Digest of what the recording depends on; every shard has it.
        d: Numbers in a mean gradient, 0 where none was recorded.
        dtype: Of the rows.
        segments: Descriptions of the projections, in the order of their use.
        shards: Those that are written.
        binding: What it was made from; None while it is recorded.
        recipe: How a training went, of a store that has all of its steps.
        training_sha256: Of the start and the end of that training.
        dropout: What was dropped out while it was recorded, and which share: rows are gradients
            under the masks that their steps drew.
        audit: What was measured of the rows' losses.
    """

    course: str
    d: int
    dtype: str
    segments: tuple[dict[str, Any], ...] = ()
    shards: tuple[Shard, ...] = ()
    binding: Binding | None = None
    recipe: Recipe | None = None
    training_sha256: str | None = None
    dropout: dict[str, float] = field(default_factory=dict)
    audit: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into `folder`."""
        shards = [shard.entry() for shard in self.shards]
        value = {"version": VERSION, **asdict(replace(self, shards=())), "shards": shards}
        write_json(folder / MANIFEST, {**value, "sha256": digest(value)})


def adam_moments(
    optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> tuple[Tensor, int] | None:
    """Adam's two running means `[2, d]` in the order of `parameters`, on the host, and its count of
    steps; None before its first."""
    states = [optimiser.state.get(p, {}) for p in parameters]
    if not all("exp_avg" in state for state in states):
        return None
    names = ("exp_avg", "exp_avg_sq")
    moments = [torch.cat([state[name].flatten() for state in states]).cpu() for name in names]
    return torch.stack(moments), int(states[0]["step"])


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`; None where there is none. Shards are as listed, and not opened.

    Raises:
        StoreError: It is damaged, of another version of the format, or lists what is no shard.
    """
    path = folder / MANIFEST
    if not path.is_symlink() and not path.exists():
        return None
    try:
        with open_regular(path) as file:
            value = json.loads(file.read())
        version = value["version"] if "version" in value else value["spec"]["version"]
        if version != VERSION:
            raise StoreError(
                f"the store {folder} was to be read",
                f"it has version {version} of the format, and this program reads {VERSION}",
                "Remove that folder and record again: `fudlr record RUN`, or train again with "
                "recording",
            )
        seal = value.pop("sha256")
        sound = seal == digest(value)
        del value["version"]
        binding, recipe, entries = (value.pop(name) for name in ("binding", "recipe", "shards"))
        facts = (
            {k: v for k, v in entry.items() if k not in ("name", "bytes")} for entry in entries
        )
        found = Manifest(
            **{**value, "segments": tuple(value["segments"])},
            shards=tuple(Shard(folder, **each) for each in facts),
            binding=None if binding is None else Binding(**binding),
            recipe=None if recipe is None else Recipe(**{**recipe, "betas": (*recipe["betas"],)}),
        )
        for number, (shard, entry) in enumerate(zip(found.shards, entries, strict=True)):
            if (shard.entry(), shard.sequence, shard.course) != (entry, number, found.course):
                raise refuse(path, f"lists a shard that no writer names so: {entry['name']!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise refuse(path, f"is damaged or of another format ({error})") from error
    if not sound:
        raise refuse(path, "is corrupted: it does not match its checksum")
    return found
