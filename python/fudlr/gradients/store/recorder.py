"""Records each sample's sketched gradient from the backward passes that a training makes anyway.

The loss of a training step is Σ_i w_i ℓ_i / divisor. Row i is the sketch of g_i = ∇ℓ_i, so what the
backward pass gives is multiplied by divisor / w_i. Nothing of the training changes: hooks read, and
what they read is reduced to p numbers a sample at once.

    with Recorder(model, "store", data="ratings of May") as recorder:  # the last epoch
        for ids, batch in loader:
            with recorder.batch(ids):
                losses(model, batch).mean().backward()
            optimiser.step()
    Store.open("store")  # bound to the adapter that the epoch left
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fudlr.common.errors import UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.store import manifest
from fudlr.gradients.store.batch_gradients import BatchGradients
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.fitting import Fitting, load_projection
from fudlr.gradients.store.projection import Projection, chosen
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.rehearsal import refuse_dropout
from fudlr.gradients.store.sealing import seal
from fudlr.gradients.store.spec import Binding, fingerprint, model_fingerprint
from fudlr.gradients.store.writer import StoreWriter
from fudlr_ext import Engine
from fudlr_ext.backward_hook import BackwardHook


class Recorder:
    """Rides on one epoch of a training; `batch` goes around each forward and backward pass.

    Until `finish` the rows lie in `<out>.recording`, bound to the course of training; `finish` puts
    the store in place, bound to the adapter as it is then. As a context it finishes at the end, and
    keeps the recording where an error ends it: a training that starts again from the same point
    goes on with it, and batches that are stored pass unrecorded.

    Args:
        model: A peft model with plain LoRA layers, or an engine over it.
        out: The store's folder; an earlier store there is replaced by `finish`.
        data: What identifies the training data: a text, a table as tensors, the path of a file, or
            a ready fingerprint of both data and order, `(data, order)`.
        config: Projection, dimensions, dtype; see `RecordConfig`.
        projection: A fitted projection; otherwise the first batches decide.
        course: What identifies the course of training, for going on with a recording after the
            process ended; by default the adapter at the first batch.
        writer: This process's name, where several record at once.
        per_sample_divisors: Whether `batch` will be given a divisor for each sample.
        allow_dropout: Record although dropout is at work: rows are then gradients of the loss
            under the masks that the epoch drew.

    Raises:
        UsageError: The options do not fit.
        EngineError: The model's LoRA layers are of a kind that is not known.
    """

    def __init__(
        self,
        model: nn.Module | Engine,
        out: Path | str,
        *,
        data: Any,
        config: RecordConfig | None = None,
        projection: Projection | None = None,
        course: str | None = None,
        writer: str = "0",
        per_sample_divisors: bool = False,
        allow_dropout: bool = False,
    ) -> None:
        self.engine = model if isinstance(model, Engine) else Engine(model)
        self.out = Path(out)
        self.folder = self.out.with_name(f"{self.out.name}.recording")
        self.config = config or RecordConfig()
        self.projection = projection
        self._names = list(chosen(self.engine.shapes, self.config.matrices))
        self._data = data
        self._course = course
        self._name = writer
        self._per_sample = per_sample_divisors
        self._allow_dropout = allow_dropout
        self._recorded = False
        self._provisional: Binding | None = None
        self._hook: BackwardHook | None = None
        self._fitting: Fitting | None = None
        self._writer: StoreWriter | None = None

    @contextmanager
    def batch(
        self,
        ids: Tensor,
        *,
        divisor: float | Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Iterator[BatchGradients]:
        """Record the samples `ids` `[n]` from the backward pass within.

        Args:
            ids: One number a sample, in the order of the batch's rows.
            divisor: What the sum of losses was divided by before `backward`: n where None (a mean
                over the batch); with gradient accumulation, n times the steps accumulated. Or one
                for each sample `[n]`.
            weights: w `[n]`, where the loss was Σ w_i ℓ_i / divisor; none may be 0.

        Yields:
            The batch; set its `losses` `[n]` to have them stored.

        Raises:
            StoreError: Only a part of the batch is stored already, or a row is not finite.
            NoGradientError: No backward pass reached some LoRA matrix.
            EngineError: Gradients arrived twice, or rows are not samples.
        """
        ids = torch.as_tensor(ids).detach().to("cpu", torch.int64)
        scale = _scale(len(ids), divisor, weights, self._per_sample)
        if self._hook is None:
            self._begin()
        assert self._hook is not None
        found = BatchGradients(self._hook.layout, ids, scale, self.projection)
        if self._stored(ids):
            yield found
            return
        if not (self._allow_dropout or self._recorded):
            refuse_dropout(self.engine.model)
        self._recorded = True
        self._hook.open(len(ids), found)
        try:
            yield found
        except BaseException:
            self._hook.close(check=False)
            raise
        self._hook.close()
        self._take(found)

    @property
    def n(self) -> int:
        """Number of samples recorded so far, by an earlier process too."""
        held = sum(len(batch.ids) for batch in self._fitting.held) if self._fitting else 0
        return held + (self._writer.n if self._writer is not None else 0)

    def flush(self) -> None:
        """Bring all rows so far to disk, for a checkpoint of the training to go on from.

        Directions that are still to be chosen are chosen now, from what there is.
        """
        if self._fitting is not None and self._fitting.held:
            self._fit()
        if self._writer is not None:
            self._writer.flush()

    def finish(self) -> Store:
        """Put the store in place, bound to the adapter as the model has it now.

        Raises:
            StoreError: No batch was recorded.
        """
        if self._writer is None and self._fitting is not None:
            self._fit()
        if self._writer is None or self._provisional is None:
            self.close()
            raise StoreError(
                f"the recording of {self.out} was to be finished",
                "no batch was recorded",
                "Put `with recorder.batch(ids):` around each forward and backward pass",
            )
        adapter = fingerprint(self.engine.theta())
        found = self._provisional
        store = seal(self._writer, self.out, Binding(found.model, adapter, found.data, found.order))
        self._writer = None
        self.close()
        return store

    def close(self) -> None:
        """Take the hooks away, and keep what is recorded as a recording that can go on."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.close()

    def _begin(self) -> None:
        """At the first batch: hooks, the recording's binding, and what an earlier process left."""
        names = self.engine.names if self._per_sample else self._names
        self._hook = self.engine.backward_hook(names)
        course = self._course if self._course is not None else self.engine.theta()
        data = self._data if _is_pair(self._data) else (fingerprint(self._data),) * 2
        self._provisional = Binding(
            model_fingerprint(self.engine.model), fingerprint("recording", course), *data
        )
        left = manifest.read_manifest(self.folder) if self.folder.is_dir() else None
        if left is not None and left[0].binding != self._provisional:
            # Of another course of training, which nothing can finish any more.
            shutil.rmtree(self.folder)
        if self.projection is None:
            self.projection = load_projection(self.folder, self.engine.shapes)
        if self.projection is None:
            self._fitting = Fitting(self.engine.shapes, self.config)
            self.projection = self._fitting.ready
        if self.projection is not None:
            self._open()

    def _open(self) -> None:
        assert self.projection is not None
        assert self._provisional is not None
        self._writer = StoreWriter(
            self.folder,
            self._provisional,
            self.projection.dim,
            self.config.dtype,
            writer=self._name,
            projection=self.projection,
            facts=self.engine.d,
        )

    def _stored(self, ids: Tensor) -> bool:
        """Whether all of `ids` are in an earlier process's shards; in part is refused."""
        if self._writer is None:
            return False
        missing = len(self._writer.missing(ids))
        if 0 < missing < len(ids):
            raise StoreError(
                f"a batch of {len(ids)} samples was to be recorded",
                f"{len(ids) - missing} of them are stored already",
                "Show each sample once an epoch, and after a kill the same batches as before",
            )
        if not missing and self._writer.recorded(ids):
            raise StoreError(
                f"a batch of {len(ids)} samples was to be recorded",
                "all of them were recorded in this epoch already",
                "Record an epoch that shows each sample once",
            )
        return not missing

    def _take(self, found: BatchGradients) -> None:
        if self._fitting is not None:
            self._fitting.hold(found)
            if self._fitting.enough:
                self._fit()
            return
        assert self._writer is not None
        found.append_to(self._writer)

    def _fit(self) -> None:
        """Choose the directions from the batches held so far, and store these."""
        assert self._fitting is not None
        fitting, self._fitting = self._fitting, None
        self.projection = fitting.fit()
        self._open()
        assert self._writer is not None
        for held in fitting.held:
            held.use(self.projection)
            held.append_to(self._writer)


def _scale(
    n: int, divisor: float | Tensor | None, weights: Tensor | None, per_sample: bool
) -> float | Tensor:
    """divisor / w: a number where it is the same for all samples, else `[n]`."""
    scale: float | Tensor = float(n) if divisor is None else divisor
    if weights is not None:
        scale = scale / weights.detach()
    if isinstance(scale, Tensor):
        scale = scale.detach().to("cpu", torch.float32).reshape(-1)
        if scale.numel() not in (1, n) or not bool((scale.isfinite() & (scale > 0)).all()):
            raise UsageError(
                f"the divisors and weights of {n} samples were given",
                f"divisor / weight is {scale.tolist()[:5]}",
                "Give one for all or one each, above 0: a sample of weight 0 has no gradient here",
            )
        if bool((scale == scale[0]).all()):
            scale = float(scale[0])
    elif not 0 < scale < float("inf"):
        raise UsageError(
            "the divisor of a batch's loss was given", f"{scale}", "Give a number above 0"
        )
    if isinstance(scale, Tensor) and not per_sample:
        raise UsageError(
            "a divisor for each sample was given",
            "the recorder was made for one divisor a batch",
            "Make it with per_sample_divisors=True",
        )
    return scale


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(d, str) for d in data)
