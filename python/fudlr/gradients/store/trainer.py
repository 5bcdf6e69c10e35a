"""Records a `transformers.Trainer`'s training, from its own backward passes.

The Trainer differentiates factor · Σ_i Σ_t ℓ_it / items, ℓ_it the cross-entropy of a label token:
items are the label tokens of a whole step or of the batch, factor what the loss was multiplied by
after the model (1 / batches accumulated, a gradient scaler's scale). Row i is the gradient of
ℓ_i = Σ_t ℓ_it / c_i over sample i's c_i label tokens, so its share is factor · c_i / items. The
factor is not guessed: it is the gradient that arrives at the model's loss.

    callback = RecorderCallback("store", data="ratings of May")
    arguments = TrainingArguments("out", remove_unused_columns=False)
    Trainer(model, arguments, train_dataset=Numbered(samples), callbacks=[callback]).train()
    Store.open("store")  # bound to the adapter that the training left
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from torch.utils.hooks import RemovableHandle
from transformers.trainer_callback import TrainerCallback

from fudlr.common import parallel
from fudlr.common.digest import digest
from fudlr.common.errors import FudlrError, RecordingWarning, UsageError
from fudlr.common.files import write_json
from fudlr.config import RecordConfig
from fudlr.gradients.projection import Projection
from fudlr.gradients.store.batch import ASKED, LabelledBatch
from fudlr.gradients.store.manifest import Recipe
from fudlr.gradients.store.recorder import Recorder
from fudlr.gradients.store.steps import check_room
from fudlr_ext import Engine

COLUMN = "sample_id"
POINTS = "points.json"
"""In a recording: its course, and the adapter's digest at each step that a checkpoint was saved."""


class RecorderCallback(TrainerCallback):
    """Records a Trainer's training of a causal language model's LoRA adapter: the whole of it, or
    with `record.epochs` `last` the last epoch alone.

    Every batch holds the samples' ids, one integer each and no two the same, in the column `ids`;
    they are taken out before the model sees them. `Numbered` puts them there by position, and
    `collator` carries them past a collator that knows nothing of them. The loss is the model's own.
    A sample without labels has the row 0. Training is the same bit for bit. What cannot be recorded
    is refused at the training's first batch; an error of the recording's own after it ends the
    recording with a `RecordingWarning`, and never the training. After an error within `train`,
    `close` takes the hooks away.

    A training that resumes from a checkpoint before the recorded steps, or from one that this
    callback saw saved among them, goes on with the recording.

    Args:
        out: The store's folder, put in place when the recorded steps end.
        data: What identifies the training data and its order, as `Recorder` has it.
        ids: The column of ids.
        config: Which epochs, and how rows are made.
        projection: A fitted projection; otherwise the first batches decide.
    """

    def __init__(
        self,
        out: Path | str,
        *,
        data: Any,
        ids: str = COLUMN,
        config: RecordConfig | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.out, self.ids = Path(out), ids
        self.config = config or RecordConfig()
        self._data, self._projection = data, projection
        self._engine: Engine | None = None
        self._recorder: Recorder | None = None
        self._batch: LabelledBatch | None = None
        self._handles: list[RemovableHandle] = []
        self._resumed: str | None = None
        self._course = ""
        self._ranks = parallel.ALONE
        self._known = False
        self._first = self._each = self._samples = 0

    def collator(
        self, inner: Callable[[Sequence[Any]], Mapping[str, Any]]
    ) -> Callable[[Sequence[Any]], dict[str, Any]]:
        """A collator like `inner`, which does not see the ids; they are put into its batch."""

        def collate(samples: Sequence[Any]) -> dict[str, Any]:
            found = torch.tensor([int(sample[self.ids]) for sample in samples])
            rest = [{k: v for k, v in sample.items() if k != self.ids} for sample in samples]
            return {**inner(rest), self.ids: found}

        return collate

    @property
    def _whole(self) -> bool:
        return self.config.epochs == "all"

    def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Refuse what cannot be recorded, before the training; then watch the model.

        Raises:
            UsageError: An option of the Trainer's, or the point it resumes from, does not allow it.
            EngineError: The model's LoRA layers are of a kind that is not known.
        """
        self.close()
        model, loader = now["model"], now["train_dataloader"]
        _check_arguments(args, loader, whole=self._whole)
        self._ranks = parallel.of_group(None) if args.world_size > 1 else parallel.ALONE
        self._each = math.ceil(len(loader) / args.gradient_accumulation_steps)
        self._first = 0 if self._whole else (int(state.num_train_epochs) - 1) * self._each
        if not self._whole and state.max_steps < self._first + self._each:
            raise UsageError(
                f"{ASKED} in its last epoch (record.epochs=last)",
                f"the training ends in the middle of it, at step {state.max_steps} (max_steps)",
                "Train by num_train_epochs, or record all epochs",
            )
        if self._whole:
            Recipe.of(now["optimizer"])
        self._samples = len(loader.dataset)
        steps = state.max_steps - self._first
        rows = math.ceil(self._samples * steps / self._each / self._ranks.size)
        self._engine = Engine(model)
        place = self.out.with_name(f"{self.out.name}.recording")
        check_room(place, rows, steps, self._engine.d, self.config)
        self._resumed = None
        if state.global_step > self._first:
            self._resumed = self._find(args, state.global_step)
        self._known = False
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Start the recorder where the recorded steps begin."""
        step = state.global_step
        if self._engine is None or step < self._first:
            return
        epoch = step // self._each + 1
        if self._recorder is not None:
            self._recorder.begin_epoch(epoch)
        elif step == self._first or self._resumed is not None:
            batch = [args.per_device_train_batch_size, args.gradient_accumulation_steps]
            theta = self._engine.theta()
            self._course = self._resumed or digest(theta, step, args.seed, batch)
            clip = args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None
            whole = {"optimiser": now["optimizer"], "clip": clip} if self._whole else {}
            self._recorder = Recorder(
                self._engine,
                self.out,
                data=self._data,
                config=self.config,
                projection=self._projection,
                course=self._course,
                hook_steps=False,
                ranks=self._ranks if self._ranks.size > 1 else None,
                **whole,
            )
            self._recorder.begin_epoch(epoch)
            if self._resumed is not None:
                self._recorder.resume(step - self._first)
                self._resumed = None

    def on_substep_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Take a batch whose gradient is only added to a step's."""
        self._leave()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Take the last batch of a step, and the step."""
        self._leave()
        with self._guarded(first=state.global_step == 0):
            if self._recorder is not None and self._whole:
                self._recorder.step()

    def on_save(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Let the recording go on from this checkpoint."""
        with self._guarded():
            if self._recorder is not None:
                self._recorder.flush()
                if not self._ranks.first:
                    return
                points, about = _points(self._recorder.folder), {"course": self._course}
                if points.get("course") == self._course:
                    about = points
                about[str(state.global_step)] = digest(self._recorder.engine.theta())
                write_json(self._recorder.folder / POINTS, about)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """At the last epoch's end, put the store in place, bound to the adapter as it is now."""
        ended = control.should_training_stop or state.global_step >= state.max_steps
        recorder = self._recorder
        if recorder is None or (self._whole and not ended):
            return
        if not self._whole and recorder.n < self._samples:
            self._give_up(
                f"the epoch showed {recorder.n} of {self._samples} samples before it ended. "
                "Resume the training"
            )
            return
        with self._guarded():
            recorder.finish()
            self._recorder = None

    def on_train_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Take the hooks away."""
        self.close()

    def close(self) -> None:
        """Take all hooks away, and keep what was recorded of an unfinished training."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._batch = None
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    @contextmanager
    def _guarded(self, *, first: bool = False) -> Iterator[None]:
        """At the training's first batch nothing is lost by an error; later a training would be,
        and it ends the recording alone."""
        try:
            yield
        except Exception as error:
            if first or not self._known:
                raise
            self._give_up(error)

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
        points = {} if args.ignore_data_skip else _points(folder)
        if points.get(str(step)) != digest(self._engine.theta()):
            raise UsageError(
                f"{ASKED} from step {self._first + 1} on",
                f"the training resumes at step {step}, and {folder} does not go on from there",
                "Resume from a checkpoint before it, or from one saved while it was recorded and "
                "without ignore_data_skip, or train without the callback",
            )
        return points["course"]

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
        batch = self._batch = LabelledBatch.of(ids, inputs, self.ids)
        if self._recorder is not None:
            weights = batch.counts.cpu()
            with self._guarded():
                context = self._recorder.batch(batch.ids, divisor=batch.items, weights=weights)
                batch.here, batch.context = context.__enter__(), context
        return args, inputs

    def _after(self, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """Once the model has its loss, check that it is the one that rows stand for."""
        batch = self._batch
        if batch is None or not model.training or (self._known and batch.here is None):
            return
        batch.watch(outputs)

    def _leave(self) -> None:
        """After a batch's backward pass, take its rows."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        with self._guarded():
            if not batch.arrived and not (self._known and batch.here is None):
                batch.wrong = batch.wrong or (
                    "what was differentiated was not the loss that the model returned"
                )
            wrong = UsageError(
                ASKED,
                batch.wrong,
                "Train a causal language model with its own loss alone, or use "
                "fudlr.gradients.store.Recorder in a loop of your own",
            )
            try:
                self._ranks.agree(wrong if batch.wrong else None)
            except FudlrError as error:
                if batch.context is not None:
                    batch.context.__exit__(type(error), error, None)
                raise
            if batch.context is not None:
                batch.context.__exit__(None, None, None)
        self._known = True


class Numbered(Dataset[dict[str, Any]]):
    """A map-style data set whose samples also carry their position, in the column `column`.

    Args:
        samples: Anything with a length whose items are mappings, such as a `datasets.Dataset`.
        column: The column's name, as `RecorderCallback` is given it.
    """

    def __init__(self, samples: Any, column: str = COLUMN) -> None:
        self.samples, self.column = samples, column

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.samples[index], self.column: int(index)}


def _check_arguments(args: Any, loader: Any, *, whole: bool) -> None:
    """Refuse a Trainer's options that do not go with a recording, all of them by name."""
    together = args.world_size * args.per_device_train_batch_size
    filled = args.world_size > 1 and hasattr(loader.dataset, "__len__")
    wrong = {
        "remove_unused_columns=True takes the ids away": args.remove_unused_columns,
        "dataloader_drop_last=True leaves samples of the last epoch out, which alone is recorded "
        "(record.epochs=last)": args.dataloader_drop_last and not whole,
        f"{args.world_size} processes fill the last epoch's last batch, which alone is recorded "
        f"(record.epochs=last), up to {together} samples with some of its first": filled
        and not whole
        and len(loader.dataset) % together > 0,
        f"{args.n_gpu} GPUs share a batch": args.n_gpu > 1,
        "packing puts several samples into one row": getattr(args, "packing", False),
        "padding_free puts all samples into one row": getattr(args, "padding_free", False),
        "label smoothing changes the loss": args.label_smoothing_factor > 0,
        "torch_compile hides the layers": args.torch_compile,
        "DeepSpeed shards parameters": bool(args.deepspeed),
        "FSDP shards parameters": bool(args.fsdp),
        "the data set has no length": not hasattr(loader.dataset, "__len__"),
    }
    found = [reason for reason, holds in wrong.items() if holds]
    if found:
        raise UsageError(
            ASKED,
            "; ".join(found),
            "Change these options, or use `Recorder` in a loop of your own",
        )


def _points(folder: Path) -> dict[str, str]:
    """The course and the points that were noted in `folder`; empty where there are none."""
    try:
        found = json.loads((folder / POINTS).read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}
