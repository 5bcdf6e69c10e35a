"""Ranks: processes that do one job together, started by `torchrun` or `accelerate launch`.

Every rank runs the same command. Work over samples or users is split, sums and small tensors are
exchanged over `torch.distributed` (gloo, on the host), and all else is done by each rank alike, so
that every rank holds the same result. Rank 0 alone writes and prints.

    torchrun --nproc-per-node 2 -m fudlr record RUN

An error of one rank ends all within seconds, see `watch`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from fudlr.common.errors import FudlrError, UsageError
from fudlr.common.watch import Watch

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = timedelta(hours=2)
"""Of a collective: one rank may write a large store meanwhile. A rank that is gone is noticed by
its heartbeat long before."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a job, and which of them this one is; alone by default.

    Collectives are called by all ranks in the same order; alone they do nothing.

    Attributes:
        rank: From 0.
        size: How many.
        group: The process group, of gloo; None for the default one.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this rank writes what all of them made."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This rank's share of n things in a row."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, *tensors: Tensor) -> None:
        """Add each of `tensors`, of one shape on all ranks, up over the ranks, in place."""
        if self.size > 1:
            import torch.distributed as dist

            for tensor in tensors:
                if tensor.is_contiguous() and tensor.device.type == "cpu":
                    dist.all_reduce(tensor, group=self.group)
                else:
                    here = tensor.cpu().contiguous()
                    dist.all_reduce(here, group=self.group)
                    tensor.copy_(here)

    def sum_at(self, rank: int, tensor: Tensor) -> None:
        """Add `tensor`, on the host, up over the ranks, in place on `rank`; what is in it on the
        others then is no use."""
        if self.size > 1:
            import torch.distributed as dist

            dist.reduce(tensor, group=self.group, group_dst=rank)

    def copy(self, *tensors: Tensor) -> None:
        """Put rank 0's numbers into each of `tensors`, on the host."""
        if self.size > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0, group=self.group)

    def cat(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors `[m_r, …]`, which differ in m_r at most, one after the other."""
        if self.size == 1:
            return tensor
        import torch
        import torch.distributed as dist

        counts = self.gather(len(tensor))
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    def gather(self, value: Any) -> list[Any]:
        """The ranks' values, each one that JSON can hold."""
        if self.size == 1:
            return [value]
        import torch
        import torch.distributed as dist

        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(text)]), group=self.group)
        padded = text.new_zeros(max(int(size) for size in sizes))
        padded[: len(text)] = text
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=self.group)
        return [
            json.loads(bytes(part[: int(size)].tolist()))
            for part, size in zip(found, sizes, strict=True)
        ]

    def told(self, value: Any) -> Any:
        """Rank 0's value, one that JSON can hold."""
        return self.gather(value if self.first else None)[0]

    def agree(self, error: Exception | None = None) -> None:
        """Wait for all ranks; raise on all where one has an error.

        Raises:
            FudlrError: Another rank's, with its name; or this rank's own `error`.
        """
        if self.size > 1:
            import torch

            failed = torch.tensor([int(error is not None)])
            self.sum(failed)
            if int(failed):
                words = None if error is None else in_words(error)
                for rank, found in enumerate(self.gather(words)):
                    if found is not None and rank != self.rank and error is None:
                        raise FudlrError(f"rank {rank}: {found[0]}", *found[1:]) from None
        if error is not None:
            raise error

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where a rank fails within, all of them raise at its end; no collective is within."""
        error = None
        try:
            yield
        except Exception as found:
            error = found
        self.agree(error)


ALONE = Ranks()
P = ParamSpec("P")
_scratch: list[Path] = []
_now = ALONE
_watch: Watch | None = None


def ranks() -> Ranks:
    """The ranks that share what is done now."""
    return _now


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process does a job of its own, and writes its files."""
    global _now  # noqa: PLW0603
    before, _now = _now, ALONE
    try:
        yield
    finally:
        _now = before


def writes(path: Any) -> bool:
    """Whether this rank writes there: the first one does."""
    return _now.first or any(Path(path).is_relative_to(each) for each in _scratch)


def by_first(work: Callable[P, None]) -> Callable[P, None]:
    """`work` on files, whose first argument is a path, done by the rank that writes there."""

    @wraps(work)
    def run(*args: P.args, **options: P.kwargs) -> None:
        if writes(args[0]):
            work(*args, **options)

    return run


@contextmanager
def thrown_away() -> Iterator[Path]:
    """A folder for what another rank than the first makes and nobody reads."""
    with tempfile.TemporaryDirectory() as folder:
        _scratch.append(Path(folder))
        yield Path(folder)
    _scratch.pop()


def of_group(group: Any) -> Ranks:
    """The ranks of a training's process group; what they exchange is on the host, over gloo.

    A collective where the group is of another backend.
    """
    import torch.distributed as dist

    size = dist.get_world_size(group)
    if size == 1:
        return ALONE
    if "gloo" not in dist.get_backend(group):
        group = dist.new_group(dist.get_process_group_ranks(group), backend="gloo")
    return Ranks(dist.get_rank(group), size, group)


def local() -> int:
    """Which of this machine's ranks this one is, and so which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _now.size > 1 else 0


def asked() -> int:
    """How many ranks the environment asks for (WORLD_SIZE)."""
    found = os.environ.get("WORLD_SIZE", "1")
    return int(found) if found.isdigit() else 1


def start() -> None:
    """Join the ranks that `torchrun`'s environment names; nothing where there is one alone.

    From here on rank 0 alone prints and writes files.

    Raises:
        UsageError: The environment is not whole, or the ranks do not meet.
    """
    global _now, _watch
    if asked() == 1 or _watch is not None:
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    # The wait for the others is in C++, where no handler of Python's runs: a launcher that saw one
    # of them end must be able to end it.
    usual = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError, StopIteration) as error:
        raise UsageError(
            f"{asked()} ranks were to work together (WORLD_SIZE)",
            f"they did not meet ({str(error).splitlines()[0]})",
            "Start them with torchrun --nproc-per-node N -m fudlr …, or unset WORLD_SIZE",
        ) from error
    finally:
        signal.signal(signal.SIGTERM, usual)
    _now, _watch = Ranks(rank, size), Watch(store.clone(), rank, size)
    if not _now.first:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def end() -> None:
    """Leave the ranks together, after work that went well on all."""
    global _now, _watch
    if _watch is None:
        return
    import torch.distributed as dist

    dist.barrier()
    _watch.stop()
    _now, _watch = ALONE, None
    dist.destroy_process_group()


def many() -> bool:
    """Whether this process is one of several ranks."""
    return _watch is not None


def fail(text: str) -> bool:
    """Say on every rank, once, why this one ends; whether there are several. The caller exits."""
    if _watch is not None:
        _watch.fail(text)
    return many()


def in_words(error: Exception) -> tuple[str, str, str]:
    """What was asked, found, and to be done of an error, whoever raised it."""
    if isinstance(error, FudlrError):
        return error.asked, error.found, error.remedy
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}", text, "See that rank's own output"
