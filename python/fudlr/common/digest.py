"""One digest for everything that results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements in row-major order, without a copy where it is contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def digest(*parts: Any) -> str:
    """sha256 of `parts`, in hexadecimal.

    Args:
        parts: Tensors (dtype, shape and elements count), mappings of names to tensors (their
            order does not), paths of files (their content counts), or values that JSON can hold.
    """
    found = hashlib.sha256()
    for part in parts:
        _feed(found, part)
    return found.hexdigest()


def _feed(found: Any, part: Any) -> None:
    if isinstance(part, Tensor) and hasattr(part, "__tensor_flatten__"):  # a quantised weight
        names, rest = part.__tensor_flatten__()
        _feed(found, {**{name: getattr(part, name) for name in names}, "rest": repr(rest)})
    elif isinstance(part, Tensor):
        found.update(f"tensor {part.dtype} {list(part.shape)}\n".encode())
        found.update(tensor_bytes(part))
    elif isinstance(part, Mapping) and any(isinstance(value, Tensor) for value in part.values()):
        for name in sorted(part):
            found.update(f"name {name}\n".encode())
            _feed(found, part[name])
    elif isinstance(part, Path):
        found.update(b"file\n")
        with part.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    else:
        found.update(f"json {canonical_json(part)}\n".encode())
