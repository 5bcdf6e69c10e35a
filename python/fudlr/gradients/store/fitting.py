"""How a recording comes to its projection: given, found on disk, drawn, or fitted to a start."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.store.batch_gradients import BatchGradients
from fudlr.gradients.store.encoding import row_bytes
from fudlr.gradients.store.principal import PrincipalAccumulator
from fudlr.gradients.store.projection import Projection, Shapes
from fudlr.gradients.store.random_projection import random_projection
from fudlr.gradients.store.writer import PROJECTION
from fudlr_ext.ops import sample_grads

HELD_BYTES = 2 * 2**30
"""Most memory for the first batches' factors; larger models fit their projection before."""
SIZE = 0.1
"""Of float32 gradients, the share of bytes that rows by energy may take."""
ROW_EXTRA = 64
"""Bytes of a row beside its numbers: its id, its part of headers and facts, with room."""


class Fitting:
    """Holds the first batches until they are enough to choose principal directions from."""

    def __init__(self, shapes: Shapes, config: RecordConfig) -> None:
        self._shapes = shapes
        self._config = config
        self.held: list[BatchGradients] = []
        self.ready = ready_projection(shapes, config)
        """The projection itself where its kind needs no gradients."""

    @property
    def enough(self) -> bool:
        """Whether as many samples are held as the options ask for."""
        return sum(len(batch.ids) for batch in self.held) >= self._config.fit_samples

    def hold(self, batch: BatchGradients) -> None:
        """Keep a batch's factors.

        Raises:
            UsageError: They do not fit into the memory that is meant for them.
        """
        self.held.append(batch)
        count = sum(len(each.ids) for each in self.held)
        check_held(sum(each.held_bytes for each in self.held), count, self._config)

    def fit(self) -> Projection:
        """The projection that the held batches give."""
        accumulator = PrincipalAccumulator(self._shapes, self._config.matrices)
        names = set(accumulator.names)
        for batch in self.held:
            for block, *factors in batch.held:
                if block.name in names:
                    accumulator.add_gradients(block.name, sample_grads(*factors))
        return fit(accumulator, self._config)


def check_held(size: int, count: int, config: RecordConfig) -> None:
    """Raise where the factors of `count` samples, `size` bytes, are more than may be held."""
    if size > HELD_BYTES:
        raise UsageError(
            f"principal directions were to be fitted to {config.fit_samples} samples",
            f"the factors of the first {count} take {size / 2**30:.1f} GiB, and "
            f"{HELD_BYTES / 2**30:.1f} are meant for them",
            "Fit the projection before (PrincipalAccumulator) and hand it over, lower "
            "record.fit_samples, or use a random projection",
        )


def ready_projection(shapes: Shapes, config: RecordConfig) -> Projection | None:
    """A projection whose kind needs no gradients; None for principal directions."""
    if config.projection == "principal":
        return None
    dims = config.dims
    assert dims is not None
    return random_projection(
        shapes, dims, kind=config.projection, seed=config.seed, matrices=config.matrices
    )


def fit(accumulator: PrincipalAccumulator, config: RecordConfig) -> Projection:
    """Principal directions, as many as the options ask for."""
    if config.dims is not None:
        return accumulator.fit(dims=config.dims, cap=config.cap)
    cap = config.cap or largest_row(sum(a * b for a, b in accumulator.shapes.values()), config)
    return accumulator.fit(energy=config.energy, cap=cap)


def largest_row(d: int, config: RecordConfig) -> int:
    """The largest p whose row on disk is a tenth of the bytes of a float32 gradient `[d]`."""
    room = SIZE * 4 * d - ROW_EXTRA
    return max(1, int(room * 128 / row_bytes(128, config.dtype)))


def fit_rows(shapes: Shapes, rows: Tensor, config: RecordConfig) -> Projection:
    """The projection for the options, fitted to flat gradients `rows` `[n, d]` where it must be."""
    ready = ready_projection(shapes, config)
    if ready is not None:
        return ready
    accumulator = PrincipalAccumulator(shapes, config.matrices)
    accumulator.add_rows(rows)
    return fit(accumulator, config)


def load_projection(folder: Path, shapes: Shapes) -> Projection | None:
    """The projection that an earlier process left in `folder`; None where there is none.

    It may be there without a manifest: it is written first.
    """
    path = folder / PROJECTION
    if not path.exists():
        return None
    found = Projection.load(path)
    return found if found.shapes == dict(shapes) else None
