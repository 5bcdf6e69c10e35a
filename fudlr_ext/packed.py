"""Where the positions of a batch lie once its padding is left out.

Found on the host, whatever the device: what is asked comes there in one copy, which is all that a
pass over the decoder layers waits for, and the index tensors go back in one more, for which nobody
waits. Offsets are kept as plain numbers as well, so that no part of a pass has to ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Where positions lie, and which of them are wanted after the last layer; all on one device.

    Attributes:
        offsets: [n + 1], the positions of each sample.
        limits: [T], how many positions of its sample each one sees.
        cos: [T, head_dim].
        sin: [T, head_dim].
        starts: The offsets as numbers.
        wanted: The positions wanted, [W], each sample's in order; None: all.
        wanted_offsets: [n + 1], those of each sample.
        wanted_starts: These offsets as numbers.
    """

    offsets: Tensor
    limits: Tensor
    cos: Tensor
    sin: Tensor
    starts: tuple[int, ...]
    wanted: Tensor | None = None
    wanted_offsets: Tensor | None = None
    wanted_starts: tuple[int, ...] = ()

    def everything(self) -> Packed:
        """Return the same with all positions wanted."""
        return replace(self, wanted=None, wanted_offsets=None, wanted_starts=())

    def between(self, samples: slice) -> tuple[slice, slice]:
        """The positions of some samples, and those of them that go on after the queries."""
        rows = _between(self.starts, samples)
        return rows, rows if self.wanted is None else _between(self.wanted_starts, samples)

    def part(self, samples: slice) -> Packed:
        """Return the share of some samples, as views."""
        rows, queries = self.between(samples)
        ends = slice(samples.start, samples.stop + 1)
        found = Packed(
            offsets=self.offsets[ends] - rows.start,
            limits=self.limits[rows],
            cos=self.cos[rows],
            sin=self.sin[rows],
            starts=_moved(self.starts[ends], rows.start),
        )
        if self.wanted is None or self.wanted_offsets is None:
            return found
        return replace(
            found,
            wanted=self.wanted[queries] - rows.start,
            wanted_offsets=self.wanted_offsets[ends] - queries.start,
            wanted_starts=_moved(self.wanted_starts[ends], queries.start),
        )


def _between(starts: tuple[int, ...], samples: slice) -> slice:
    return slice(starts[samples.start], starts[samples.stop])


def _moved(starts: tuple[int, ...], by: int) -> tuple[int, ...]:
    return tuple(start - by for start in starts)


@dataclass(frozen=True)
class PackedBatch:
    """A batch's positions, one after the other without padding.

    Attributes:
        rows: Which of the n · t they are, [T]; None: all.
        slots: Where among the wanted ones each position asked for lies, [n, L]; None: none was.
        packed: What the layers need to know.
    """

    rows: Tensor | None
    slots: Tensor | None
    packed: Packed


def pack(
    real: Tensor, positions: Tensor | None, holds: Tensor, angles: tuple[Tensor, Tensor]
) -> PackedBatch | None:
    """Pack the real positions of a batch; None where that cannot be, or `holds` is false.

    Args:
        real: [n, t], which positions are no padding.
        positions: The only ones wanted, [n, L]; None: all.
        holds: [], a condition that was computed on the same device.
        angles: Cosines and sines [n or 1, t, head_dim], in the dtype and on the device of all.
    """
    n, t = real.shape
    here = _read(holds, real, positions)
    if here is None:
        return None
    given = _send(here, real.device)
    rows = given.get("rows")
    cos, sin = (each.expand(n, t, -1).reshape(n * t, -1) for each in angles)
    if rows is not None:
        cos, sin = cos[rows], sin[rows]
    packed = Packed(given["offsets"], given["limits"], cos, sin, tuple(here["offsets"].tolist()))
    if positions is not None:
        packed = replace(
            packed,
            wanted=given["wanted"],
            wanted_offsets=given["counts"],
            wanted_starts=tuple(here["counts"].tolist()),
        )
    return PackedBatch(rows, given.get("slots"), packed)


def _read(holds: Tensor, real: Tensor, positions: Tensor | None) -> dict[str, Tensor] | None:
    """Return all index tensors on the host; a device is waited for here, and nowhere else."""
    if real.device.type != "cpu":
        asked = [holds, real] if positions is None else [holds, real, positions]
        # The one wait of a pass, and the reason why a graph cannot capture a whole one.
        flat = torch.cat([each.flatten().to(torch.int64) for each in asked]).cpu()
        parts = flat.split([each.numel() for each in asked])
        holds, real = parts[0], parts[1].view(real.shape).bool()
        positions = None if positions is None else parts[2].view(positions.shape)
    return _indices(real, positions) if bool(holds) else None


def _indices(real: Tensor, positions: Tensor | None) -> dict[str, Tensor] | None:
    """Return the index tensors by name; None where a position asked for is padding."""
    zero = real.new_zeros(1, dtype=torch.int64)
    found = {
        "offsets": torch.cat([zero, real.sum(1).cumsum(0)]),
        "limits": real.cumsum(1)[real],
    }
    if not bool(real.all()):
        found["rows"] = real.flatten().nonzero().flatten()
    if positions is None:
        return found
    if not bool(real.gather(1, positions).all()):
        return None
    used = torch.zeros_like(real).scatter_(1, positions, True)
    rank = used.flatten().cumsum(0).view(real.shape) - 1
    found["wanted"] = used[real].nonzero().flatten()
    found["counts"] = torch.cat([zero, used.sum(1).cumsum(0)])
    found["slots"] = rank.gather(1, positions)
    return found


def _send(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return index tensors on the device, where one copy brings all of them."""
    if device.type == "cpu":
        return tensors
    flat = torch.cat([each.flatten() for each in tensors.values()])
    flat = flat.to(device, non_blocking=True)
    parts = flat.split([each.numel() for each in tensors.values()])
    return {
        name: part.view(each.shape)
        for (name, each), part in zip(tensors.items(), parts, strict=True)
    }
