"""Records samples' sketched gradients from the backward passes that a training makes anyway.

A step's gradient is Σ_i u_i g_i, g_i = ∇ℓ_i and u_i = weight / divisor of sample i in the loss. Row
i is the sketch of g_i, so what the backward pass gives is divided by u_i; the sum is kept as it is.
Nothing of the training changes: hooks read, and what they read is reduced to p numbers a sample.

    with Recorder(model, "store", data="ratings of May", optimiser=optimiser) as recorder:
        for epoch in range(epochs):
            for ids, batch in loader:
                with recorder.batch(ids):
                    losses(model, batch).mean().backward()
                optimiser.step()
                optimiser.zero_grad()
    Store.open("store")  # bound to the adapter that the training left

Where dropout is at work, a row is the gradient under the masks that its step drew; the store says
so.
With the optimiser the store is of the whole training, and can be unrolled. Without, put it around
the last epoch alone: the store then serves the closed form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fudlr.common import parallel
from fudlr.common.digest import digest
from fudlr.common.errors import UsageError
from fudlr.common.files import atomic_file, check_replaceable, remove_folder, replace_folder
from fudlr.common.parallel import Ranks
from fudlr.config import RecordConfig
from fudlr.gradients.projection import Projection
from fudlr.gradients.store.batch import BatchGradients, check_gradient, dropout_at_work, shares_of
from fudlr.gradients.store.manifest import (
    TRAINING,
    Binding,
    Recipe,
    adam_moments,
    model_fingerprint,
    read_manifest,
    unwrapped,
)
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.spools import RankRecorder, clear, within
from fudlr.gradients.store.steps import StepRecorder
from fudlr_ext import Engine
from fudlr_ext.backward_hook import BackwardHook
from fudlr_ext.reducers import Reducer, Rows, Sketch


class Recorder:
    """Rides on a training; `batch` goes around each forward and backward pass.

    Until `finish` the rows lie in `<out>.recording`; `finish` puts the store in place, bound to the
    adapter as it is then. As a context it finishes at the end, and keeps the recording where an
    error ends it: a training that starts again from the same point goes on with it, and steps that
    are stored pass unrecorded.

    Args:
        model: A peft model with plain LoRA layers, alone or in a `DistributedDataParallel`, or an
            engine over it. Of several processes each records its own samples, and calls the same
            methods; say where an epoch begins.
        out: The store's folder; an earlier store there is replaced by `finish`.
        data: What identifies the training data: a text, a table as tensors, the path of a file, or
            ready digests of both data and order, `(data, order)`.
        config: How rows are made; see `RecordConfig`.
        optimiser: Whose steps are recorded, for a store of the whole training; Adam or AdamW.
        clip: The norm that the loop clips the gradient to before each step.
        recipe: In the optimiser's place, how a loop that calls `step` makes its steps.
        projection: A fitted projection; otherwise the first batches decide.
        course: What identifies the course of training, for going on with a recording after the
            process ended; by default the adapter at the first batch.
        folder: Where the rows lie until then; `<out>.recording` where None.
        hook_steps: Whether the optimiser's own step ends a recorded one; else call `step`.
        ranks: The processes that train together, where the model does not tell.

    Raises:
        UsageError: The options do not fit, or the optimiser's steps cannot be repeated.
        EngineError: The model's LoRA layers are of a kind that is not known.
    """

    def __init__(
        self,
        model: nn.Module | Engine,
        out: Path | str,
        *,
        data: Any,
        config: RecordConfig | None = None,
        optimiser: torch.optim.Optimizer | None = None,
        clip: float | None = None,
        recipe: Recipe | None = None,
        projection: Projection | None = None,
        course: str | None = None,
        folder: Path | None = None,
        hook_steps: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        inner, found = within(model)
        self.ranks = ranks or found or parallel.ranks()
        # Of the gradients that DistributedDataParallel takes the mean of.
        self._averaged = self.ranks.size if ranks or found else 1
        self.engine = inner if isinstance(inner, Engine) else Engine(inner)
        self.out = Path(out)
        self.folder = folder or self.out.with_name(f"{self.out.name}.recording")
        check_replaceable(self.out, "store")
        self.config = config or RecordConfig()
        self.optimiser = optimiser
        self.recipe = recipe if optimiser is None else Recipe.of(optimiser, clip=clip)
        self._given, self._data, self._course = projection, data, course
        self._dropout: dict[str, float] | None = None
        self._hook_steps = hook_steps
        self._handles: list[Any] = []
        self._backward_hook: BackwardHook | None = None
        self._begun: StepRecorder | None = None
        self._binding: Binding | None = None
        self._training: dict[str, Tensor] = {}
        self._parts: list[BatchGradients] = []
        self._sketched: Projection | None = None
        self._seen: set[int] | None = set()  # None where epochs are told
        self._passed = 0
        self._epoch = 1

    @contextmanager
    def batch(
        self,
        ids: Tensor,
        *,
        divisor: float | Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Iterator[BatchGradients | None]:
        """Record the samples `ids` `[n]` from the backward pass within.

        Args:
            ids: One number a sample, in the order of the batch's rows; of several processes, one
                that has no samples of a step gives none.
            divisor: What the sum of losses was divided by before `backward`: n where None (a mean
                over the batch); with gradient accumulation, n times the steps accumulated. Or one
                for each sample `[n]`.
            weights: w `[n]`, where the loss was Σ w_i ℓ_i / divisor.

        Yields:
            The batch; None where an earlier process stored its step already.

        Raises:
            NumericalError: A row is not finite.
            NoGradientError: No backward pass reached some LoRA matrix.
            EngineError: Gradients arrived twice, or rows are not samples.
        """
        ids = torch.as_tensor(ids).detach().to("cpu", torch.int64)
        shares = shares_of(len(ids), divisor, weights)
        steps = self._steps
        if self._backward_hook is None:
            self._backward_hook = self.engine.backward_hook(self.engine.names)
            self._handles.append(self._backward_hook)
        if self._dropout is None:
            self._dropout = dropout_at_work(self.engine.model)
        self._note_epoch(ids)
        if self._passed < steps.steps:
            yield None
            if self.recipe is None:
                self._passed += 1
            return
        found = BatchGradients(self._backward_hook.layout, ids, shares, self.reducer())
        if len(ids):
            self._backward_hook.open(len(ids), found)
        try:
            yield found
        except BaseException:
            self._backward_hook.close(check=False)
            raise
        with self.ranks.together():
            if len(ids):
                self._backward_hook.close()
                found.end(self._backward_hook.total())
                self._parts.append(found)
        if self.recipe is None:
            self.step(0.0)

    def step(self, rate: float | None = None) -> None:
        """Take the batches since the last step as one; called by the optimiser's own step.

        Args:
            rate: Its learning rate, where it is not the optimiser's.

        Raises:
            UsageError: The optimiser's gradient is not the recorded one.
        """
        if self._begun is None:
            return
        parts, self._parts = self._parts, []
        at, self._passed = self._passed, self._passed + 1
        if at < self._begun.steps:
            return
        if not parts and self.ranks.size == 1:
            raise UsageError(
                "a training was to be recorded",
                "the optimiser took a step without a recorded batch",
                "Put `with recorder.batch(ids):` around every forward and backward pass",
            )
        ids, shares, rows, mean = self._joined(parts)
        if self.optimiser is not None:
            assert self.recipe is not None
            check_gradient(self.engine.parameters(), self.recipe, mean)
            rate = self.recipe.rate(self.optimiser) if rate is None else rate
        assert rate is not None
        self._begun.add(ids, rows.cpu(), mean.cpu(), shares.cpu(), float(rate))

    def _joined(self, parts: list[BatchGradients]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids, shares and rows of a step's batches, and its mean gradient, all ranks' together."""
        if len(parts) == 1:
            ids, shares, rows, mean = parts[0].ids, parts[0].shares, parts[0].rows, parts[0].mean
        elif parts:
            ids, shares, rows = (
                torch.cat([getattr(part, name) for part in parts])
                for name in ("ids", "shares", "rows")
            )
            mean = torch.stack([part.mean for part in parts]).sum(0)
        else:  # the other ranks have samples
            ids, shares = torch.empty(0, dtype=torch.int64), torch.empty(0)
            rows, mean = self._nothing, torch.zeros(self.engine.d)
        if self.ranks.size > 1:
            shares, mean = shares / self._averaged, mean / self._averaged
            self.ranks.sum(mean)
        return ids, shares, rows, mean

    @property
    def _nothing(self) -> Tensor:
        """Rows of no samples."""
        projection = self._steps.projection
        return torch.empty(0, self.engine.d if projection is None else projection.dim)

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 1; else a sample that is shown again begins one."""
        self._epoch, self._seen = epoch, None

    def reducer(self) -> Reducer:
        """What the next step's gradients are to be reduced to: sketches, or themselves."""
        self._steps.begin_epoch(self._epoch)
        projection = self._steps.projection
        if projection is None:
            return Rows()
        if projection is not self._sketched:
            self._sketched, self._sketch = projection, Sketch(projection.sides)
        return self._sketch

    def take(self, ids: Tensor, rows: Tensor | None, mean: Tensor, rate: float, size: int) -> None:
        """Take a step that an engine computed of `size` samples, each with the share 1 / `size`:
        of this process's `ids` `[b]` the g_i as `reducer` made them, and of all the mean `[d]`."""
        self._passed += 1
        if self._passed > self._steps.steps:
            shares = torch.full((len(ids),), 1 / size)
            rows = self._nothing if rows is None else rows
            self._steps.add(ids, rows.cpu(), mean.cpu(), shares, rate)

    @property
    def n(self) -> int:
        """Samples in all steps so far, an earlier process's too."""
        return 0 if self._begun is None else self._begun.rows

    def flush(self) -> None:
        """Bring all steps so far to disk, for a checkpoint of the training to go on from."""
        if self._begun is not None:
            self._begun.flush()

    def resume(self, steps: int) -> bool:
        """Go on at a checkpoint's `steps` steps: whether they are here."""
        self._passed = steps
        return self._steps.resume(steps)

    def finish(self) -> Store:
        """Put the store in place, bound to the adapter as the model has it now.

        Raises:
            StoreError: No batch was recorded.
        """
        theta = self.engine.theta().cpu()
        try:
            steps = self._steps
            assert self._binding is not None  # begin
            binding = replace(self._binding, adapter=digest(theta))
            ends = {**self._training, "end": theta}
            steps.finish(binding, self.recipe, ends, self._dropout)
        finally:
            self.close()
        with self.ranks.together():
            if self.ranks.first:
                clear(self.folder)
                replace_folder(self.folder, self.out, "store")
        return Store.open(self.out, binding)

    def close(self) -> None:
        """Take the hooks away, and keep what is recorded as a recording that can go on."""
        while self._handles:
            self._handles.pop().remove()
        self._backward_hook = None
        if self._begun is not None:
            self._begun.close()
            self._begun = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()

    @property
    def _steps(self) -> StepRecorder:
        """Where steps go, which the first of them begins."""
        if self._begun is None:
            self.begin()
        assert self._begun is not None
        return self._begun

    def begin(self) -> None:
        """Set hooks, and go on with what an earlier process left of the same course."""
        theta = self.engine.theta().cpu()
        data = self._data
        if not (isinstance(data, tuple) and len(data) == 2 and all(type(d) is str for d in data)):
            data = (digest(data),) * 2
        self._binding = Binding(model_fingerprint(self.engine.model), digest(theta), *data)
        course = self._course if self._course is not None else theta
        options = self.config.model_dump(mode="json")
        about = (self._binding.model, course, list(data), options, repr(self.recipe))
        key = digest("recording", *about)
        if self.ranks.size > 1:  # a folder may be the first process's alone
            places = [str(path.absolute()) for path in (self.out, self.folder)]
            self.out, self.folder = map(Path, self.ranks.told(places))
        with self.ranks.together():
            left = read_manifest(self.folder) if self.folder.is_dir() else None
            foreign = left is not None and (left.course != key or left.binding is not None)
            if foreign and self.ranks.first:
                # Of another course of training, which nothing can finish any more.
                remove_folder(self.folder, "store")
        how = (self.folder, key, self.engine.shapes, self.config, self._given)
        several = self.ranks.size > 1
        make = partial(RankRecorder, ranks=self.ranks) if several else StepRecorder
        self._begun = make(*how)
        path = self.folder / TRAINING
        with self.ranks.together():
            if self.ranks.first and not path.is_file():
                self._write_start(path, theta)
        self._training = load_file(path)
        if self.optimiser is not None and self._hook_steps:
            inner = unwrapped(self.optimiser)
            self._handles.append(inner.register_step_pre_hook(lambda *_: self.step()))

    def _write_start(self, path: Path, theta: Tensor) -> None:
        """Keep the adapter as it is at the start, and the optimiser's state."""
        start = {"start": theta}
        if self.optimiser is not None:
            # A training that did not begin with the optimiser's first step.
            optimiser, parameters = unwrapped(self.optimiser), self.engine.parameters()
            if found := adam_moments(optimiser, parameters):
                start |= {"moments": found[0], "before": torch.as_tensor(found[1])}
        with atomic_file(path) as temporary:
            save_file(start, temporary)

    def _note_epoch(self, ids: Tensor) -> None:
        """A sample that was shown before begins a new epoch."""
        if self._seen is None:
            return
        if self.ranks.size > 1:
            raise UsageError(
                "a training in several processes was to be recorded",
                "it was not said which epoch begins, and no process sees all samples",
                "Call recorder.begin_epoch(epoch) at the start of each, from 1",
            )
        names = ids.tolist()
        if not self._parts and not self._seen.isdisjoint(names):
            self._seen.clear()
            self._epoch += 1
        self._seen.update(names)
