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

With the optimiser the store is of the whole training, and can be unrolled. Without, put it around
the last epoch alone: the store then serves the closed form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fudlr.common.digest import digest
from fudlr.common.errors import StoreError, UsageError
from fudlr.common.files import atomic_file, check_replaceable, remove_folder, replace_folder
from fudlr.config import RecordConfig
from fudlr.gradients.projection import Projection
from fudlr.gradients.store.binding import Binding, Recipe, model_fingerprint
from fudlr.gradients.store.manifest import TRAINING, read_manifest
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.steps import StepRecorder, Taken, check_held
from fudlr_ext import Engine
from fudlr_ext.backward_hook import BackwardHook
from fudlr_ext.layers import Block, Layout
from fudlr_ext.reducers import Rows, Sketch

SAME_GRADIENT = 1e-3
"""Relative distance of the optimiser's gradient from the recorded one that counts as rounding."""


class BatchGradients:
    """Takes a batch's gradients from a `BackwardHook`.

    Args:
        layout: The LoRA matrices.
        ids: The samples `[n]`.
        shares: u `[n]`; a sample with 0 has the row 0.
        projection: What makes the rows; whole gradients without it.
    """

    def __init__(
        self, layout: Layout, ids: Tensor, shares: Tensor, projection: Projection | None
    ) -> None:
        self.ids, self.shares = ids, shares
        self.mean = torch.zeros(layout.d, dtype=layout.dtype, device=layout.device)
        self._reducer = Rows() if projection is None else Sketch(projection.sides)
        self._reducer.start(layout, len(ids))

    def multiplied(self, factor: float) -> None:
        """Say that the loss was multiplied by `factor` on its way to `backward`."""
        self.shares = self.shares * factor

    def factors(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        """Take a block's factors from the backward pass."""
        self._reducer.add(block, left, right, offsets)

    def total(self, block: Block, gradient: Tensor) -> None:
        """Take the gradient of the whole loss in a block."""
        self.mean[block.slice].add_(gradient.flatten().to(self.mean))

    def rows(self) -> Tensor:
        """g_i or their sketches, `[n, d]` or `[n, p]`."""
        found = self._reducer.result()
        shares = self.shares.to(found)[:, None]
        return torch.where(shares > 0, found / shares.clamp_min(1e-38), 0.0)


class Recorder:
    """Rides on a training; `batch` goes around each forward and backward pass.

    Until `finish` the rows lie in `<out>.recording`; `finish` puts the store in place, bound to the
    adapter as it is then. As a context it finishes at the end, and keeps the recording where an
    error ends it: a training that starts again from the same point goes on with it, and steps that
    are stored pass unrecorded.

    Args:
        model: A peft model with plain LoRA layers, or an engine over it.
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
        allow_dropout: Record although dropout is at work: rows are then gradients of the loss
            under the masks that were drawn.
        hook_steps: Whether the optimiser's own step ends a recorded one; else call `step`.

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
        allow_dropout: bool = False,
        hook_steps: bool = True,
    ) -> None:
        self.engine = model if isinstance(model, Engine) else Engine(model)
        self.out = Path(out)
        self.folder = folder or self.out.with_name(f"{self.out.name}.recording")
        check_replaceable(self.out, "store")
        self.config = config or RecordConfig()
        self.optimiser = optimiser
        self.recipe = recipe if optimiser is None else Recipe.of(optimiser, clip=clip)
        self._given, self._data, self._course = projection, data, course
        self._allow_dropout = allow_dropout
        self._checked = allow_dropout
        self._backward_hook: BackwardHook | None = None
        self._steps: StepRecorder | None = None
        self._binding: Binding | None = None
        self._training: dict[str, Tensor] = {}
        self._parts: list[BatchGradients] = []
        self._seen: set[int] = set()
        self._passed = 0
        self._epoch = 1
        self._counts_epochs = True
        self._hook_steps = hook_steps
        self._hook: Any = None

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
            ids: One number a sample, in the order of the batch's rows.
            divisor: What the sum of losses was divided by before `backward`: n where None (a mean
                over the batch); with gradient accumulation, n times the steps accumulated. Or one
                for each sample `[n]`.
            weights: w `[n]`, where the loss was Σ w_i ℓ_i / divisor.

        Yields:
            The batch; None where an earlier process stored its step already.

        Raises:
            StoreError: A row is not finite.
            NoGradientError: No backward pass reached some LoRA matrix.
            EngineError: Gradients arrived twice, or rows are not samples.
        """
        ids = torch.as_tensor(ids).detach().to("cpu", torch.int64)
        shares = _shares(len(ids), divisor, weights)
        if self._steps is None:
            self.begin()
        if self._backward_hook is None:
            self._backward_hook = self.engine.backward_hook(self.engine.names)
        assert self._steps is not None
        self._note_epoch(ids)
        if self._passed < self._steps.steps:
            yield None
            if self.recipe is None:
                self._passed += 1
            return
        if not self._checked:
            refuse_dropout(self.engine.model)
            self._checked = True
        self._steps.begin_epoch(self._epoch)
        found = BatchGradients(self._backward_hook.layout, ids, shares, self._steps.projection)
        self._backward_hook.open(len(ids), found)
        try:
            yield found
        except BaseException:
            self._backward_hook.close(check=False)
            raise
        self._backward_hook.close()
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
        if self._steps is None:
            return
        parts, self._parts = self._parts, []
        at, self._passed = self._passed, self._passed + 1
        if at < self._steps.steps:
            return
        if not parts:
            raise UsageError(
                "a training was to be recorded",
                "the optimiser took a step without a recorded batch",
                "Put `with recorder.batch(ids):` around every forward and backward pass",
            )
        mean = torch.stack([part.mean for part in parts]).sum(0)
        if self.optimiser is not None:
            self._check_gradient(mean)
        if rate is None:
            assert self.optimiser is not None
            rate = float(self.optimiser.param_groups[0]["lr"])
        ids = torch.cat([part.ids for part in parts])
        shares = torch.cat([part.shares for part in parts])
        rows = torch.cat([part.rows() for part in parts])
        self._steps.add(Taken(ids, rows, mean, shares, rate))

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 1; else a sample that is shown again begins one."""
        self._epoch, self._counts_epochs = epoch, False
        self._seen.clear()

    @property
    def projection(self) -> Projection | None:
        """What the next step's rows are to be sketched by; None where they are wanted whole."""
        if self._steps is None:
            self.begin()
        assert self._steps is not None
        self._steps.begin_epoch(self._epoch)
        return self._steps.projection

    def take(self, ids: Tensor, rows: Tensor, mean: Tensor, rate: float) -> None:
        """Take a step that an engine computed.

        Args:
            ids: The samples `[b]`, each with the share 1/b.
            rows: g_i, as `projection` says.
            mean: Their mean `[d]`.
            rate: The learning rate.
        """
        assert self._steps is not None  # projection
        self._passed += 1
        if self._passed > self._steps.steps:
            self._steps.add(Taken(ids, rows, mean, None, rate))

    @property
    def n(self) -> int:
        """Samples in all steps so far, an earlier process's too."""
        return 0 if self._steps is None else self._steps.rows

    def flush(self) -> None:
        """Bring all steps so far to disk, for a checkpoint of the training to go on from."""
        if self._steps is not None:
            self._steps.flush()

    def resume(self, steps: int) -> bool:
        """Go on at a checkpoint's `steps` steps: whether they are here."""
        if self._steps is None:
            self.begin()
        assert self._steps is not None
        self._passed = steps
        return self._steps.resume(steps)

    def finish(self) -> Store:
        """Put the store in place, bound to the adapter as the model has it now.

        Raises:
            StoreError: No batch was recorded.
        """
        if self._steps is None or self._binding is None or not self._steps.steps:
            self.close()
            raise StoreError(
                f"the recording of {self.out} was to be finished",
                "no batch was recorded",
                "Put `with recorder.batch(ids):` around each forward and backward pass",
            )
        theta = self.engine.theta()
        found = self._binding
        binding = Binding(found.model, digest(theta), found.data, found.order)
        self._steps.flush()
        training = {**self._training, "end": theta}
        self._steps.writer.finish(binding, self.recipe, training)
        self.close()
        replace_folder(self.folder, self.out, "store")
        return Store.open(self.out, binding)

    def close(self) -> None:
        """Take the hooks away, and keep what is recorded as a recording that can go on."""
        if self._backward_hook is not None:
            self._backward_hook.remove()
            self._backward_hook = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._steps is not None:
            self._steps.writer.close()
            self._steps = None

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

    def begin(self) -> None:
        """Set hooks, and go on with what an earlier process left of the same course."""
        theta = self.engine.theta()
        data = self._data if _is_pair(self._data) else (digest(self._data),) * 2
        self._binding = Binding(model_fingerprint(self.engine.model), digest(theta), *data)
        course = self._course if self._course is not None else theta
        options = self.config.model_dump(mode="json")
        about = (self._binding.model, course, list(data), options, repr(self.recipe))
        key = digest("recording", *about)
        left = read_manifest(self.folder) if self.folder.is_dir() else None
        if left is not None and (left.course != key or left.binding is not None):
            # Of another course of training, which nothing can finish any more.
            remove_folder(self.folder, "store")
        given = {"projection": self._given}
        self._steps = StepRecorder(self.folder, key, self.engine.shapes, self.config, **given)
        path = self.folder / TRAINING
        if not path.is_file():
            with atomic_file(path) as temporary:
                save_file({"start": theta, **_state(self.optimiser, self.engine)}, temporary)
        self._training = load_file(path)
        if self.optimiser is not None and self._hook_steps:
            inner = getattr(self.optimiser, "optimizer", self.optimiser)
            self._hook = inner.register_step_pre_hook(lambda *_: self.step())

    def _note_epoch(self, ids: Tensor) -> None:
        """A sample that was shown before begins a new epoch."""
        names = ids.tolist()
        if self._counts_epochs and not self._parts and not self._seen.isdisjoint(names):
            self._seen.clear()
            self._epoch += 1
        self._seen.update(names)

    def _check_gradient(self, mean: Tensor) -> None:
        """Raise where the optimiser is about to take another gradient than the recorded one."""
        assert self.recipe is not None
        parameters = self.engine.parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        given = torch.cat([gradient.flatten() for gradient in gradients]).to(mean)
        norm = float(mean.norm())
        factor = 1.0 if self.recipe.clip is None else min(1.0, self.recipe.clip / (norm + 1e-6))
        if len(gradients) == len(parameters):
            off = float((given - factor * mean).norm())
            if off <= SAME_GRADIENT * max(float(given.norm()), factor * norm):
                return
        raise UsageError(
            "a training was to be recorded, to be unrolled later",
            f"the optimiser's gradient is another than the recorded one (norm "
            f"{float(given.norm()):.4g} beside {factor * norm:.4g})",
            "Name the norm that the loop clips to (clip=), put every backward pass into "
            "recorder.batch, and leave the gradient as it is otherwise",
        )


def refuse_dropout(model: nn.Module) -> None:
    """Raise where a module drops something out now."""
    for name, module in model.named_modules():
        share = module.p if isinstance(module, nn.Dropout) else 0.0
        share = share or getattr(module, "attention_dropout", 0.0)
        if module.training and isinstance(share, float) and share > 0:
            raise UsageError(
                "gradients were to be recorded from a training",
                f"the dropout of {name} is at work, so that each row would be the gradient under "
                "one random mask",
                "Train without dropout, record after training with `fudlr record`, or accept it "
                "with allow_dropout=True",
            )


def rehearse(engine: Engine, config: RecordConfig, n: int, backward: Any) -> None:
    """Take the gradients of a batch as a recorder would, and forget them.

    Parameters, their gradients (none, after it) and the random state are as they were.

    Args:
        engine: Over the model as it will train: its mode, and which parameters need gradients.
        config: As the recorder will have it.
        n: Samples in the batch, as many as in a batch of the training.
        backward: Runs the forward and backward pass of these n samples.

    Raises:
        UsageError: Dropout is at work, or whole gradients would take more memory than is meant for
            them.
        NoGradientError: The backward pass reaches not every LoRA matrix.
        EngineError: Rows are not samples, or the adapter is of a kind or in a state that is not
            known.
    """
    refuse_dropout(engine.model)
    if config.projection == "principal":
        check_held(max(n, config.fit_samples), engine.d, config)
    hook = engine.backward_hook(engine.names)
    found = BatchGradients(hook.layout, torch.arange(n), torch.ones(n), None)
    try:
        hook.open(n, found)
        with torch.random.fork_rng(devices=[]):
            backward()
        hook.close()
    finally:
        hook.remove()
        for parameter in engine.parameters():
            parameter.grad = None


def _state(optimiser: torch.optim.Optimizer | None, engine: Engine) -> dict[str, Tensor]:
    """Adam's moments `[2, d]` and its count of steps, where it took some before the recording."""
    if optimiser is None:
        return {}
    inner = getattr(optimiser, "optimizer", optimiser)
    states = [inner.state.get(p, {}) for p in engine.parameters()]
    if not all("exp_avg" in state for state in states):
        return {}
    names = ("exp_avg", "exp_avg_sq")
    moments = [torch.cat([state[name].flatten() for state in states]) for name in names]
    return {"moments": torch.stack(moments), "before": torch.as_tensor(int(states[0]["step"]))}


def _shares(n: int, divisor: float | Tensor | None, weights: Tensor | None) -> Tensor:
    """u = weight / divisor of each sample, `[n]` float32."""
    scale = torch.as_tensor(float(n) if divisor is None else divisor).detach().cpu().float()
    given = torch.ones(n) if weights is None else weights.detach().cpu().float()
    fits = scale.numel() in (1, n) and given.shape == (n,)
    if not fits or not bool((scale > 0).all()) or not bool((given >= 0).all()):
        raise UsageError(
            f"the divisors and weights of {n} samples were given",
            f"divisors {scale.flatten().tolist()[:5]}, weights {given.flatten().tolist()[:5]}",
            "Give one divisor above 0 for all or one each, and weights from 0 on, one each",
        )
    return given / scale.flatten()


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(d, str) for d in data)
