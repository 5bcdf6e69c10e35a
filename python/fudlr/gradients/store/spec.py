"""What a store's rows are, and what they were made from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fudlr.common.errors import UsageError
from fudlr.gradients.store.encoding import DTYPES

FORMAT_VERSION = 1
STALE = "other stale rows"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LORA = re.compile(r"\.lora_[A-Za-z]+\.")


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements in row-major order, without a copy where it is contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def fingerprint(*parts: Any) -> str:
    """sha256 of `parts`, in hexadecimal.

    Args:
        parts: Tensors (dtype, shape and elements count), mappings of names to tensors (their
            order does not), paths of files (their content counts), or values that JSON can hold.
    """
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        digest.update(f"tensor {part.dtype} {list(part.shape)}\n".encode())
        digest.update(tensor_bytes(part))
    elif isinstance(part, Mapping) and any(isinstance(value, Tensor) for value in part.values()):
        for name in sorted(part):
            digest.update(f"name {name}\n".encode())
            _feed(digest, part[name])
    elif isinstance(part, Path):
        digest.update(b"file\n")
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    else:
        digest.update(f"json {canonical_json(part)}\n".encode())


@dataclass(frozen=True)
class Binding:
    """Fingerprints (sha256, hexadecimal) of all that determines a store's rows.

    Attributes:
        model: The frozen weights.
        adapter: The LoRA parameters at which the gradients were taken.
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
                    "Use fudlr.gradients.store.fingerprint(...)",
                )

    def differences(self, other: Binding) -> list[str]:
        """Which of model, adapter, data and order are not the same."""
        names = (entry.name for entry in fields(self))
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class Stale:
    """Rows that were taken at an earlier adapter than the store's, and how far off such rows are.

    Attributes:
        rows: How many.
        measured: Samples recorded again, that the figures are of.
        cosine: Mean cosine of a stale row with the same sample's at the store's adapter.
        error: ‖stale rows − rows at the store's adapter‖ / ‖rows at the store's adapter‖.
        influences: Share of the squares of probe influences that stale rows give right, were all
            rows such; see `audit`. None where too few samples were recorded again to tell.
    """

    rows: int
    measured: int
    cosine: float
    error: float
    influences: float | None = None


@dataclass(frozen=True)
class StoreSpec:
    """What every shard of a store has in common.

    Attributes:
        dim: p, numbers in a row.
        dtype: `float32`, `bfloat16` or `int8` (with scales).
        binding: What the rows were made from.
        projection: Description of the projection that made the rows, `{}` where there is none.
        stale: Of a store that was refreshed in part; None where all rows are the adapter's.
    """

    dim: int
    dtype: str
    binding: Binding
    projection: dict[str, Any] = field(default_factory=dict)
    stale: Stale | None = None

    def __post_init__(self) -> None:
        if self.dim < 1 or self.dtype not in DTYPES:
            raise UsageError(
                f"rows of {self.dim} numbers in {self.dtype} were to be stored",
                "a row has at least one number, in " + ", ".join(DTYPES),
                "Choose one of these",
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, with the format's version."""
        value = {"version": FORMAT_VERSION, **asdict(self)}
        if self.stale is None:
            del value["stale"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StoreSpec:
        """Back from `to_json`; KeyError, TypeError, ValueError or UsageError where it is not."""
        if value["version"] != FORMAT_VERSION:
            raise ValueError(
                f"format version {value['version']}; this program reads {FORMAT_VERSION}"
            )
        return cls(
            dim=int(value["dim"]),
            dtype=str(value["dtype"]),
            binding=Binding(**value["binding"]),
            projection=dict(value["projection"]),
            stale=Stale(**value["stale"]) if "stale" in value else None,
        )

    def differences(self, other: StoreSpec) -> list[str]:
        """What differs, in words for an error: `dim 8 instead of 4`, `another adapter`."""
        found = [
            f"{name} {getattr(other, name)} instead of {getattr(self, name)}"
            for name in ("dim", "dtype")
            if getattr(self, name) != getattr(other, name)
        ]
        found += [f"another {name}" for name in self.binding.differences(other.binding)]
        if self.projection != other.projection:
            found.append("another projection")
        if self.stale != other.stale:
            found.append(STALE)
        return found


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
    return fingerprint(frozen)
