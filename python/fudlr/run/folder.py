"""A run: data, base model, start and trained adapter, together in memory and in one folder.

RUN/config.yaml        every option, as `--config` reads it
RUN/base/              the base model and its tokenizer, Hugging Face's files
RUN/start/             θ₀, the adapter before training, peft's files
RUN/adapter/           θ*, the trained adapter, peft's files
RUN/adam.safetensors   the optimiser's state at the end, where the adapter was trained here
RUN/trajectory/        every batch's per-sample gradients, where they were kept
RUN/store/             sketches of the training samples' gradients, where they were recorded
RUN/recommender.json   how it recommends: items, tokens or prompt template
RUN/train.json         losses, seconds, versions
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr import lora
from fudlr.common.errors import DataError, ModelError, UsageError
from fudlr.common.files import atomic_folder, check_replaceable, write_json
from fudlr.common.progress import StageClock
from fudlr.config import DataConfig, RunConfig, dump_config, load_config
from fudlr.data import (
    DataWarning,
    Interactions,
    Split,
    drawn,
    find_ml100k,
    read_recbole,
    readers,
    split_as,
    synthetic,
)
from fudlr.gradients.recording import STORE, Observer, bind, ride_along
from fudlr.gradients.store import Binding, Store
from fudlr.influence.unroll import FOLDER as TRAJECTORY
from fudlr.influence.unroll import StepWriter
from fudlr.recommenders import Recommender
from fudlr.run.base import load_base, load_tokenizer, make_base, recommender_kind
from fudlr.train.adam import Adam
from fudlr.train.adapter import Training, train_adapter
from fudlr.train.checkpoint import Checkpoint
from fudlr_ext import Engine

RECORD = "recommender.json"


@dataclass
class Run:
    """Everything that a step of the method may need; `load_run` and `train_run` make one."""

    config: RunConfig
    split: Split
    recommender: Recommender
    engine: Engine
    start: Tensor
    """θ₀ [d]."""
    theta: Tensor
    """θ* [d]."""
    train_seconds: float
    """Wall time of the training, for comparison; 0 where it is not known."""
    losses: list[float]
    folder: Path | None = None
    adam: Adam | None = None
    """The optimiser's state at the end of the training; None where that is not known."""
    bound: Binding | None = None
    """Of stores that were merged; else what the fields give."""
    notes: tuple[str, ...] = ()
    """What each request from here warns of."""

    @property
    def interactions(self) -> Interactions:
        """The data that the split is of."""
        return self.split.interactions

    @property
    def binding(self) -> Binding:
        """What rows of the training samples' gradients at `theta` are bound to."""
        return self.bound or bind(
            self.recommender, self.theta, self.split.train, self.config.data.window
        )

    def store(self, folder: Path | None = None) -> Store | None:
        """The store of the training samples' gradients, row ids being `split.train.ids`.

        Args:
            folder: Another one than the run's own.

        Returns:
            The store, checked to be of this model, adapter, data and order; None where the run has
            none of its own: `fudlr record` makes it.

        Raises:
            StoreError: It is damaged, or was made from something else, with the reason.
        """
        if folder is None:
            if self.folder is None or not (self.folder / STORE).is_dir():
                return None
            folder = self.folder / STORE
        return Store.open(folder, self.binding)


def read_data(config: DataConfig) -> Interactions:
    """The interactions that `config.source` names.

    Raises:
        DataError: The source is missing, damaged or inconsistent; raised by the readers.
    """
    if config.source == "ml-100k":
        return read_recbole(find_ml100k(), "ml-100k", ties=config.ties)
    if config.source == "synthetic":
        return synthetic()
    return readers.read_data(
        config.source, config.name, config.form, config.columns, ties=config.ties
    )


def make_split(interactions: Interactions, config: DataConfig) -> Split:
    """A split and a draw from it, as the configuration says."""
    split = split_as(config, interactions)
    return drawn(split, config.train_samples, config.prompt_users, config.draw_seed)


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("fudlr-ext", "torch", "transformers", "peft", "numpy")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


def train_run(
    config: RunConfig, out: str | Path, clock: StageClock | None = None, *, overwrite: bool = False
) -> Run:
    """Read, split, pretrain or load the base, train the adapter, and write it all to `out`.

    Args:
        config: All options.
        out: The run's folder.
        clock: Where the stages' seconds are noted.
        overwrite: Whether an earlier run in `out` may be replaced, once this one is whole.

    Raises:
        UsageError: `out` holds a run and `overwrite` is false, or holds anything else.
    """
    out, clock = Path(out), clock or StageClock()
    _check_out(out, overwrite)
    kind = recommender_kind(config)
    with clock.stage("read the data"):
        split = make_split(read_data(config.data), config.data)
    if len(split.train) == 0:
        raise DataError(
            "an adapter was to be trained",
            "no user has enough interactions for a training sample",
            "Give users with at least four interactions, or lower data.pretrain_share",
        )
    with clock.stage("base model"), torch.random.fork_rng(devices=[]):
        base = make_base(split, config)
    with atomic_folder(out, "run") as temporary:
        base.model.save_pretrained(str(temporary / "base"))  # type: ignore[operator]
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(str(temporary / "base"))
        foreign = config.lora.adapter
        if foreign is not None:
            model = lora.load(base.model, Path(foreign))
            engine = Engine(model)
            trained = engine.theta()
            # Its start is not known; the base model's function is that of B = 0, whatever A was.
            engine.load(lora.without_b(engine, trained))
        else:
            model = lora.attach(base.model, config.lora, config.seed)
            engine = Engine(model)
        lora.save(model, temporary / "start")
        recommender = kind.create(model, base.tokenizer, split.interactions, config, base.record)
        notes = recommender.notes(split.train)
        for note in notes:
            warnings.warn(note, DataWarning, stacklevel=2)
        start = engine.theta()
        riding: AbstractContextManager[Observer | None] = nullcontext()
        if foreign is None:
            riding = ride_along(
                recommender, engine, split.train, config=config, run=temporary, clock=clock
            )
        with riding as observer, clock.stage("training"):
            if foreign is not None:
                engine.load(trained)
                training = Training(trained, [])
            else:
                kept = _trajectory(out, temporary, config)
                if kept is not None:
                    kept.check_room(len(split.train) * config.train.epochs, engine.d)
                training = train_adapter(
                    recommender,
                    engine,
                    split.train,
                    config.train,
                    start,
                    observer=observer,
                    checkpoint=_checkpoint(out, config, recommender, start, split),
                    trajectory=kept,
                )
                if kept is not None and kept.folder.parent != temporary:
                    kept.folder.replace(temporary / TRAJECTORY)
        lora.save(model, temporary / "adapter")
        if training.adam is not None:
            training.adam.save(temporary)
        _write_items(temporary, split.interactions, recommender)
        seconds = 0.0 if foreign is not None else clock.seconds["training"]
        write_json(
            temporary / "train.json",
            {
                "losses": training.losses,
                "pretrain_losses": base.losses,
                "notes": notes,
                "samples": len(split.train),
                "parameters": engine.d,
                "seconds": {**clock.seconds, "training": seconds},
                "versions": versions(),
                "seed": config.seed,
            },
        )
        dump_config(temporary / "config.yaml", config)
    model.eval()
    return Run(
        config=config,
        split=split,
        recommender=recommender,
        engine=engine,
        start=start,
        theta=training.theta,
        train_seconds=seconds,
        losses=training.losses,
        folder=out,
        adam=training.adam,
    )


def _check_out(out: Path, overwrite: bool) -> None:
    check_replaceable(out, "run")
    if not overwrite and (out / "config.yaml").is_file():
        raise UsageError(
            f"an adapter was to be trained into {out}",
            "there is a trained run already",
            "Name another folder with --out, or replace that run with --overwrite",
        )


def _trajectory(out: Path, temporary: Path, config: RunConfig) -> StepWriter | None:
    """Where the training keeps its batches: beside `out` where it may be stopped and go on."""
    if config.record.trajectory is None:
        return None
    beside = out.parent / f".{out.name}.{TRAJECTORY}"
    folder = beside if config.train.checkpoint else temporary / TRAJECTORY
    return StepWriter(folder, config.record.trajectory)


def _checkpoint(
    out: Path, config: RunConfig, recommender: Recommender, start: Tensor, split: Split
) -> Checkpoint | None:
    """Where the training of the run in `out` keeps its state, beside that folder, if anywhere."""
    if not config.train.checkpoint:
        return None
    course = bind(recommender, start, split.train, config.data.window)
    return Checkpoint(out.parent, config.train.checkpoint, str(course))


def load_run(folder: str | Path, adapter: str | Path | None = None) -> Run:
    """The run in `folder`, with its own trained adapter or with the one in `adapter`.

    Raises:
        UsageError: The folder is not a run.
        DataError: The data changed since the run was made.
        ModelError: The base or the adapter cannot be loaded.
    """
    folder, adapter = Path(folder), Path(adapter) if adapter is not None else None
    missing = [n for n in ("config.yaml", RECORD, "train.json") if not (folder / n).is_file()]
    if missing:
        raise UsageError(
            f"the run in {folder} was to be loaded",
            f"{', '.join(missing)} is missing there",
            "Name a folder that `fudlr train --out` wrote",
        )
    config = load_config(folder / "config.yaml")
    split = make_split(read_data(config.data), config.data)
    kind = recommender_kind(config)
    record = _read_items(folder, split.interactions)
    base = load_base(folder / "base", config.model.dtype)
    tokenizer = load_tokenizer(folder / "base") if kind.prompted else None
    start_model = lora.load(base, folder / "start")
    start = Engine(start_model).theta()
    model = lora.load(start_model.unload(), adapter or folder / "adapter")
    model.eval()
    recommender = kind.create(model, tokenizer, split.interactions, config, record)
    engine = Engine(model)
    if engine.d != len(start):
        raise ModelError(
            f"the adapter in {adapter} was to be used in the run {folder}",
            f"it has {engine.d} parameters, the run's own has {len(start)}",
            "Use an adapter with the rank and targets of this run",
        )
    trained = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    return Run(
        config=config,
        split=split,
        recommender=recommender,
        engine=engine,
        start=start,
        theta=engine.theta(),
        train_seconds=float(trained["seconds"].get("training", 0.0)),
        losses=trained["losses"],
        folder=folder,
        adam=Adam.load(folder),
    )


def _write_items(folder: Path, interactions: Interactions, recommender: Recommender) -> None:
    item_ids = interactions.items["item_id"].to_list()
    record = {"kind": recommender.name, "item_ids": item_ids, **recommender.record()}
    write_json(folder / RECORD, record)


def _read_items(folder: Path, interactions: Interactions) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["item_ids"] != interactions.items["item_id"].to_list():
        raise DataError(
            f"the run in {folder} was to be continued",
            "its items are not those of the data as it is now",
            "Point data.source in its config.yaml at the data it was trained on, or train again",
        )
    return record
