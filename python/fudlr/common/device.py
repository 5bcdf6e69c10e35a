"""Where the model runs, chosen and refused here alone; and how batches get there.

On the device are the model, its batches, and what the engine makes of them. Data, rows of
gradients, stores, scores, and vectors of the adapter are on the host, whatever the device: files
and digests do not depend on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fudlr.common import parallel
from fudlr.common.errors import UsageError
from fudlr.common.reading import read_json
from fudlr.common.terminal import say
from fudlr_ext import _C

T = TypeVar("T")
DTYPES = ("float32", "bfloat16", "float16")
CPU = torch.device("cpu")
LIBRARY: Any = _C


class Place(NamedTuple):
    """Where the base model is, and the type of its weights."""

    device: torch.device
    dtype: torch.dtype


def place(device: str, dtype: str, folder: Path | None = None) -> Place:
    """The place that `model.device` and `model.dtype` ask for, for the base model in `folder`.

    Raises:
        UsageError: There is no such GPU, torch or the library cannot use it, or the type is none
            that the device computes in.
    """
    asked = f"the model was to run on {device} in {dtype} (model.device, model.dtype)"
    if device == "auto":
        found = why_no_gpu(parallel.local())
        if found and torch.cuda.is_available():
            say(f"The model runs on the CPU: {found[0]}. {found[1]}", "yellow")
        chosen = CPU if found else torch.device("cuda", parallel.local())
    elif device == "cpu":
        chosen = CPU
    else:
        chosen = torch.device("cuda", int(device.partition(":")[2] or parallel.local()))
        if found := why_no_gpu(chosen.index):
            raise UsageError(asked, *found)
    if dtype == "auto":
        own = _own_dtype(folder)
        dtype = own if own in DTYPES and (own, chosen.type) != ("float16", "cpu") else "float32"
    if (dtype, chosen.type) == ("float16", "cpu"):
        raise UsageError(
            asked,
            "runs compute in float16 on GPUs alone",
            "Run on a GPU (model.device=cuda), or train with model.dtype bfloat16, float32 or auto",
        )
    return Place(chosen, getattr(torch, dtype))


def why_no_gpu(index: int) -> tuple[str, str] | None:
    """Why GPU `index` cannot be used, and what to do; None where it can."""
    else_cpu = "or set model.device to cpu"
    if not torch.backends.cuda.is_built():
        return (
            f"this torch ({torch.__version__}) was built without CUDA",
            f"Install one with CUDA, which PyPI has for Linux, {else_cpu}",
        )
    if not torch.cuda.is_available():
        return (
            "torch finds no GPU",
            "Look whether `nvidia-smi` shows one and CUDA_VISIBLE_DEVICES does not hide it, "
            + else_cpu,
        )
    count = torch.cuda.device_count()
    if index >= count:
        known = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
        return f"there is no cuda:{index}, only {known}", f"Name one of them, {else_cpu}"
    if "cuda" not in LIBRARY.devices():
        return (
            "the library was built without kernels for GPUs",
            f"Install it with FUDLR_CUDA=ON in the environment (docs/cuda.md), {else_cpu}",
        )
    have = 10 * torch.cuda.get_device_capability(index)[0]
    have += torch.cuda.get_device_capability(index)[1]
    built = LIBRARY.cuda_architectures()
    # The PTX of an architecture serves every later one.
    if not any(have >= int(each.removeprefix("compute_")) for each in built if "compute" in each):
        return (
            f"{torch.cuda.get_device_name(index)} is sm_{have}, and the library's kernels are for "
            f"{', '.join(built)} and later",
            f"Use a newer GPU, {else_cpu}",
        )
    return None


def facts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a summary says of where its figures were computed."""
    gpu: dict[str, Any] = {}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        gpu = {"gpu": torch.cuda.get_device_name(device), "architecture": f"sm_{major}{minor}"}
    return {
        "device": str(device),
        **gpu,
        "dtype": str(dtype).removeprefix("torch."),
        "instruction_set": LIBRARY.isa(),
        "threads": torch.get_num_threads(),
    }


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` with its tensors on `device`, from pinned memory and without waiting for them."""
    if device.type == "cpu":
        return batch
    return _mapped(batch, lambda tensor: _pinned(tensor).to(device, non_blocking=True))


def ahead(batches: Iterable[T], device: torch.device) -> Iterator[T]:
    """`batches` on `device`, each made and pinned by another thread while the one before is used.

    On the CPU they are made as they are asked for.
    """
    if device.type == "cpu":
        yield from batches
        return
    source, end = iter(batches), object()

    def make() -> Any:
        return _mapped(next(source, end), _pinned)

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(make)
        while (batch := coming.result()) is not end:
            coming = thread.submit(make)
            yield moved(batch, device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of the host and of `device` from `seed`; afterwards as they were."""
    with torch.random.fork_rng(devices=_gpu(device)):
        torch.manual_seed(seed)
        yield


def random_state(device: torch.device) -> Tensor:
    """State of the host's random numbers, uint8, and after it the device's."""
    states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _gpu(device))]
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Go on from what `random_state` gave, on a device of the same kind."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    for gpu in _gpu(device) if len(state) > size else []:
        torch.cuda.set_rng_state(state[size:], gpu)


def _gpu(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def _mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`batch` with every tensor changed, in mappings, lists and tuples too."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: _mapped(part, change) for name, part in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_mapped(part, change) for part in batch)
    return batch


def _own_dtype(folder: Path | None) -> str:
    """The type that a model's folder names; empty where it names none."""
    path = None if folder is None else folder / "config.json"
    if path is None or not path.is_file():
        return ""
    config = read_json(path, dict[str, Any])
    return str(config.get("dtype") or config.get("torch_dtype") or "")


@cache
def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("fudlr-ext", "torch", "transformers", "peft", "numpy")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}
