"""A GPU that is none: tensors which say that they are on one, and have their numbers on the CPU.

Every op that is given such tensors runs on these numbers, the library's own ones by their emulated
kernels. An op whose tensors say different devices is refused, as a GPU refuses it and more: torch
lets indices and single numbers come from the CPU, and then waits or copies. What a GPU would have
to be waited for is written down.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import emulation
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fudlr_ext

GPU = torch.device("cuda", 0)
LIBRARY = str(Path(fudlr_ext.__file__).parent) + os.sep
# They end on the host, or the size of their result depends on values.
WAITING = {
    "_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero",
    "repeat_interleave", "unique_consecutive", "unique_dim", "_unique2",
}  # fmt: skip


class Mixed(BaseException):
    """An op was given tensors of two devices; no `except Exception` goes on after it."""


class Pretended(Tensor):
    """A tensor on the GPU that is none; `held` has its numbers."""

    @staticmethod
    def __new__(cls, real: Tensor) -> Pretended:
        return torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(),
            dtype=real.dtype, layout=real.layout, device="meta",
        )  # fmt: skip

    def __init__(self, real: Tensor) -> None:
        self.held = real

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def data_ptr(self) -> int:
        """Where its numbers are."""
        return self.held.data_ptr()

    def __deepcopy__(self, memo: dict) -> Tensor:
        """Torch's own would give the copy a storage, which a wrapper has none of."""
        found: Tensor = Pretended(self.held.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            found = torch.nn.Parameter(found, self.requires_grad)
        memo[id(self)] = found
        return found

    def tolist(self) -> list:
        """Torch has none for subclasses."""
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise Mixed(f"{func}: used outside of the device's time")


class Device(TorchDispatchMode):
    """Runs all ops for as long as it is entered.

    Attributes:
        waits: Where the host waited for the device: op, file and function of the library's code.
        ran: Names of the library's own ops that ran.
        on_host: Names of all ops that ran on the host.

    Args:
        emulated: Whether these run by the emulated kernels; else by the CPU's, which is faster.
    """

    def __init__(self, emulated: bool = True) -> None:
        super().__init__()
        self._emulated = emulated
        self.waits: list[str] = []
        self.ran: set[str] = set()
        self.on_host: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        there = [isinstance(x, Pretended) for x in tensors]
        if name in ("_to_copy", "copy_"):
            self._copied(name, tensors, kwargs)
        elif any(there) and not all(there):
            raise Mixed(f"{func}: {[(x.device.type, list(x.shape)) for x in tensors]}")
        elif any(there) and (name in WAITING or _masked(name, args)):
            self._waited(name)
        out_there = any(there) if name != "copy_" else there[0]
        if kwargs.get("device") is not None:
            out_there = torch.device(kwargs["device"]).type != "cpu"
            kwargs["device"] = torch.device("cpu")
        if any(there):
            func = self._kernel(func)
        elif tensors:
            self.on_host.add(name)
        real = {key: _held(x) for key, x in kwargs.items()}
        result = func(*map(_held, args), **real)
        written = [
            args[i] if i < len(args) else kwargs.get(argument.name)
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written and isinstance(result, Tensor):
            return written[0]  # in place, or into `out`
        return _pretending(result) if out_there else result

    def _kernel(self, func):
        library, _, name = func._schema.name.partition("::")
        if library not in emulation.LIBRARIES:
            return func
        self.ran.add(name)
        if not self._emulated:
            return func
        return getattr(getattr(torch.ops, f"{library}_emulated"), name).default

    def _copied(self, name: str, tensors: list[Tensor], kwargs: dict) -> None:
        """A copy from the CPU need not be waited for; one to the CPU is."""
        source, to = tensors[-1].device, tensors[0].device
        if name == "_to_copy" and kwargs.get("device") is not None:
            to = torch.device(kwargs["device"])
        here = [device.type == "cpu" for device in (source, to)]
        if here == [False, True] or (here == [True, False] and not kwargs.get("non_blocking")):
            self._waited(f"{name} {source.type} to {to.type}")

    def _waited(self, what: str) -> None:
        frames = (frame for frame, _ in traceback.walk_stack(None))
        ours = (x.f_code for x in frames if x.f_code.co_filename.startswith(LIBRARY))
        code = next(ours, None)
        where = "elsewhere" if code is None else f"{Path(code.co_filename).name}:{code.co_name}"
        self.waits.append(f"{what} in {where}")


def _tensors(arguments: Iterable) -> Iterator[Tensor]:
    for x in arguments:
        if isinstance(x, Tensor):
            yield x
        elif type(x) in (list, tuple):
            yield from _tensors(x)


def _held(x):
    if type(x) in (list, tuple):
        return [_held(each) for each in x]
    return x.held if isinstance(x, Pretended) else x


def _pretending(x):
    if isinstance(x, list | tuple):
        return type(x)(map(_pretending, x))
    return Pretended(x) if isinstance(x, Tensor) else x


def _masked(name: str, args: tuple) -> bool:
    """Whether an index is a mask, whose ones are to be counted first."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def _apply(self, fn, recurse=True, *, own=torch.nn.Module._apply):
    """Keep parameters that are one so, as `own` does where it changes their numbers in place."""
    before = dict(self.named_parameters(remove_duplicate=False))
    own(self, fn, recurse)
    first: dict[int, str] = {}
    for name, parameter in before.items():
        if (other := first.setdefault(id(parameter), name)) != name:
            place, _, last = name.rpartition(".")
            self.get_submodule(place)._parameters[last] = self.get_parameter(other)
    return self


CUDA = {
    "torch.backends.cuda.is_built": lambda: True,
    "torch.cuda._lazy_init": lambda: None,
    "torch.cuda.is_available": lambda: True,
    "torch.cuda.device_count": lambda: 1,
    "torch.cuda.get_device_name": lambda device=None: "a GPU that is none",
    "torch.cuda.get_device_capability": lambda device=None: (9, 0),
    "torch.cuda.get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
    "torch.cuda.set_rng_state": lambda state, device=None: None,
    "torch.nn.Module._apply": _apply,
    "torch.Tensor.pin_memory": lambda tensor: tensor.clone(),
}
"""What torch and the library say on a machine with a GPU."""


@contextmanager
def device(emulated: bool = True) -> Iterator[Device]:
    """Have a GPU for a while; `.to("cuda")` brings tensors and models there."""
    if emulated:
        emulation.load("emulated_plain")
    before = torch._C._only_lift_cpu_tensors()
    with ExitStack() as patches, Device(emulated) as found:
        for name, value in CUDA.items():
            patches.enter_context(patch(name, value))
        # A parameter that moves becomes another tensor, not the same one with other numbers.
        overwrite = "torch.__future__.get_overwrite_module_params_on_conversion"
        patches.enter_context(patch(overwrite, lambda: True))
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=): copied by the mode
        try:
            yield found
        finally:
            torch._C._set_only_lift_cpu_tensors(before)
