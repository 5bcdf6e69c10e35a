"""Records an epoch of a `transformers.Trainer`'s training, from its own backward passes.

The Trainer differentiates factor · Σ_i Σ_t ℓ_it / items, ℓ_it the cross-entropy of a label token:
items are the label tokens of a whole step or of the batch, factor what the loss was multiplied by
after the model (1 / batches accumulated, a gradient scaler's scale). Row i is the gradient of
ℓ_i = Σ_t ℓ_it / c_i over sample i's c_i label tokens, so its divisor is items / (factor · c_i).
The factor is not guessed: it is the gradient that arrives at the model's loss.

    callback = RecorderCallback("store", data="ratings of May")
    arguments = TrainingArguments("out", remove_unused_columns=False)
    Trainer(model, arguments, train_dataset=Numbered(samples), callbacks=[callback]).train()
    Store.open("store")  # bound to the adapter that the epoch left
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.trainer_callback import TrainerCallback

from fudlr.common.errors import UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.store.errors import RecordingWarning
from fudlr.gradients.store.projection import Projection
from fudlr.gradients.store.recorder import Recorder
from fudlr.gradients.store.rehearsal import refuse_dropout
from fudlr.gradients.store.resuming import find_course, mark
from fudlr.gradients.store.spec import fingerprint
from fudlr.gradients.store.trainer_options import check_arguments
from fudlr.gradients.store.trainer_samples import (
    ASKED,
    COLUMN,
    Batch,
    Carrying,
    count_labels,
    sample_losses,
)
from fudlr_ext import Engine


class RecorderCallback(TrainerCallback):
    """Records one epoch of a Trainer's training of a causal language model's LoRA adapter.

    Every batch holds the samples' ids, one integer each and no two the same, in the column `ids`;
    they are taken out before the model sees them. `Numbered` puts them there by position, and
    `collator` carries them past a collator that knows nothing of them. The loss is the model's own.
    Training is the same bit for bit. What cannot be recorded is refused at the training's first
    batch; an error of the recording's own after it ends the recording with a `RecordingWarning`,
    and never the training. After an error within `train`, `close` takes the hooks away.

    A training that resumes from a checkpoint before the recorded epoch, or from one that this
    callback saw saved within it, goes on with the recording.

    Args:
        out: The store's folder, put in place at the end of the recorded epoch.
        data: What identifies the training data and its order, as `Recorder` has it.
        ids: The column of ids.
        epoch: Which epoch, from 1; the last where None.
        config: Projection, dimensions, dtype.
        projection: A fitted projection; otherwise the epoch's first batches decide.
        allow_dropout: Record although dropout is at work; see `Recorder`.
    """

    def __init__(
        self,
        out: Path | str,
        *,
        data: Any,
        ids: str = COLUMN,
        epoch: int | None = None,
        config: RecordConfig | None = None,
        projection: Projection | None = None,
        allow_dropout: bool = False,
    ) -> None:
        self.out = Path(out)
        self.ids = ids
        self.epoch = epoch
        self._data = data
        self._options: dict[str, Any] = {
            "config": config,
            "projection": projection,
            "allow_dropout": allow_dropout,
        }
        self._engine: Engine | None = None
        self._recorder: Recorder | None = None
        self._batch: Batch | None = None
        self._handles: list[RemovableHandle] = []
        self._resumed: str | None = None
        self._course = ""
        self._known = False
        self._first_step = self._steps = self._samples = 0

    def collator(
        self, inner: Callable[[Sequence[Any]], Mapping[str, Any]]
    ) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """A collator like `inner`, which does not see the ids; they are put into its batch."""
        return Carrying(inner, self.ids)

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Refuse what cannot be recorded, before the training; then watch the model.

        Raises:
            UsageError: An option of the Trainer's, or the point it resumes from, does not allow it.
            EngineError: The model's LoRA layers are of a kind that is not known.
        """
        self.close()
        model, loader = now["model"], now["train_dataloader"]
        epochs = check_arguments(args, loader, epochs=state.num_train_epochs, epoch=self.epoch)
        self._steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
        self._first_step = (epochs - 1) * self._steps
        if state.max_steps < self._first_step + self._steps:
            raise UsageError(
                f"{ASKED} in epoch {epochs}",
                f"the training ends in the middle of it, at step {state.max_steps} (max_steps)",
                "Name an epoch that is run to its end, or train by num_train_epochs",
            )
        self._samples = len(loader.dataset)
        self._engine = Engine(model)
        self._resumed = None
        if state.global_step > self._first_step:
            self._resumed = self._find(args, state.global_step)
        self._known = False
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Start the recorder where this is the epoch."""
        step = state.global_step
        if self._engine is None or not 0 <= step - self._first_step < self._steps:
            return
        batch = [args.per_device_train_batch_size, args.gradient_accumulation_steps]
        self._course = self._resumed or fingerprint(self._engine.theta(), step, args.seed, batch)
        self._recorder = Recorder(
            self._engine,
            self.out,
            data=self._data,
            course=self._course,
            per_sample_divisors=True,
            **self._options,
        )

    def on_substep_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Take a batch whose gradient is only added to a step's."""
        self._leave()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Take the last batch of a step."""
        self._leave()

    def on_save(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Within the epoch, let the recording go on from this checkpoint."""
        if self._recorder is None:
            return
        try:
            self._recorder.flush()
            theta = self._recorder.engine.theta()
            mark(self._recorder.folder, state.global_step, theta, self._course)
        except Exception as error:
            self._give_up(error)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Put the store in place, bound to the adapter as it is now."""
        if self._recorder is None:
            return
        shown = self._recorder.n
        if shown < self._samples:
            self._give_up(
                f"the epoch showed {shown} of {self._samples} samples before it ended. Resume the "
                "training"
            )
            return
        try:
            self._recorder.finish()
        except Exception as error:
            self._give_up(error)
        self._recorder = None

    def on_train_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Take the hooks away."""
        self.close()

    def close(self) -> None:
        """Take all hooks away, and keep what was recorded of an unfinished epoch."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._batch = None
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def _give_up(self, reason: Exception | str) -> None:
        """End the recording, and say why and what there is of it; the training goes on."""
        recorder, self._recorder = self._recorder, None
        assert recorder is not None
        with suppress(Exception):  # what failed a moment ago fails again, and is said once
            recorder.close()
        left = recorder.folder if recorder.folder.is_dir() else "nowhere"
        warnings.warn(
            f"The store {self.out} was not made, and training goes on without it: {reason}. What "
            f"was recorded is in {left}; or take all samples' gradients in a pass after it",
            RecordingWarning,
            stacklevel=3,
        )

    def _find(self, args: Any, step: int) -> str:
        """The course of the recording that the checkpoint at `step` lies on."""
        assert self._engine is not None
        folder = self.out.with_name(f"{self.out.name}.recording")
        found = None
        if step < self._first_step + self._steps and not args.ignore_data_skip:
            found = find_course(folder, step, self._engine.theta())
        if found is None:
            raise UsageError(
                f"{ASKED} in the epoch of steps {self._first_step + 1} to "
                f"{self._first_step + self._steps}",
                f"the training resumes at step {step}, and {folder} does not go on from there",
                "Resume from a checkpoint before that epoch, or from one saved while it was "
                "recorded and without ignore_data_skip, or record another epoch",
            )
        return found

    def _before(
        self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the ids out of the model's inputs, and open the batch that they name."""
        inputs = dict(inputs)
        ids = inputs.pop(self.ids, None)
        if not model.training:
            return args, inputs
        if self._batch is not None:
            raise UsageError(
                ASKED,
                "a second forward pass came before the first one's backward",
                "Leave what a batch is to the Trainer's own training_step",
            )
        batch = self._batch = count_labels(ids, inputs, self.ids)
        if not (self._known or self._options["allow_dropout"]):
            refuse_dropout(model)
        if self._recorder is not None:
            divisor = batch.items / batch.counts
            try:
                context = self._recorder.batch(batch.ids, divisor=divisor)
                batch.here = context.__enter__()
                batch.context = context
            except Exception as error:
                self._refuse_or_give_up(error)
        return args, inputs

    def _refuse_or_give_up(self, error: Exception) -> None:
        """At the training's first batch nothing is lost by an error; later a training would be."""
        if not self._known:
            raise error
        self._give_up(error)

    def _after(self, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """Once the model has its loss, check that it is the one that rows stand for."""
        batch = self._batch
        if batch is None or not model.training:
            return
        loss, logits = getattr(outputs, "loss", None), getattr(outputs, "logits", None)
        if loss is None or logits is None or logits.dim() != 3:
            raise UsageError(
                ASKED,
                f"{type(outputs).__name__} has not both a loss and logits [n, t, vocabulary]",
                "Train a causal language model with its own loss and without fused losses, or use "
                "fudlr.gradients.store.Recorder in a loop of your own",
            )
        if self._known and batch.here is None:
            return
        losses = sample_losses(logits.detach(), batch)
        expected = float((losses * batch.counts).sum() / batch.items)
        if not math.isclose(expected, float(loss.detach()), rel_tol=1e-3, abs_tol=1e-6):
            raise UsageError(
                ASKED,
                f"the model's loss is {float(loss.detach()):.6g}, its label tokens' mean "
                f"cross-entropy {expected:.6g}",
                "Switch off what else the loss has in it (a router's part, for one), or use "
                "fudlr.gradients.store.Recorder in a loop of your own",
            )
        if batch.here is not None:
            batch.here.losses = losses
        loss.register_hook(lambda gradient: self._arrived(batch, gradient))

    def _arrived(self, batch: Batch, gradient: Tensor) -> None:
        batch.arrived = True
        if batch.here is not None:
            batch.here.multiplied(float(gradient))

    def _leave(self) -> None:
        """After a batch's backward pass, take its rows."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        if not batch.arrived and not (self._known and batch.here is None):
            raise UsageError(
                ASKED,
                "what was differentiated was not the loss that the model returned",
                "Train without a loss of your own, or use `Recorder` in a loop of your own",
            )
        try:
            if batch.context is not None:
                batch.context.__exit__(None, None, None)
        except Exception as error:
            self._refuse_or_give_up(error)
        self._known = True
