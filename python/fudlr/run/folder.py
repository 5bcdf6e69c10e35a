"""A run: data, base model, start and trained adapter, together in memory and in one folder.

RUN/config.yaml        every option, as `--config` reads it
RUN/base/              the base model and its tokenizer, Hugging Face's files
RUN/start/             θ₀, the adapter before training, peft's files
RUN/adapter/           θ*, the trained adapter, peft's files
RUN/store/             sketches of the training samples' gradients, where they were recorded
RUN/recommender.json   how it recommends: items, tokens or prompt template
RUN/train.json         losses, seconds, versions
RUN/rows.parquet       what an adapter from elsewhere was trained on, where that was named
RUN/binding.json       digests of all that, and of the data
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fudlr import lora
from fudlr.common.device import facts, versions
from fudlr.common.digest import digest
from fudlr.common.errors import DataError, ModelError, UsageError
from fudlr.common.files import atomic_folder, check_replaceable, write_json, write_table
from fudlr.common.parallel import ranks
from fudlr.common.progress import StageClock
from fudlr.common.reading import read_json
from fudlr.config import (
    DataConfig,
    RunConfig,
    dump_config,
    load_config,
    merge_trained,
    to_plain,
)
from fudlr.data import (
    DataWarning,
    Interactions,
    Split,
    load_ml100k,
    make_split,
    readers,
    synthetic,
)
from fudlr.data.trained_rows import kept, read_trained_rows, restored
from fudlr.evaluation import Prompts, make_prompts
from fudlr.gradients.recording import STORE, bind, recording
from fudlr.gradients.store import Binding, Store, model_fingerprint
from fudlr.recommenders import Recommender
from fudlr.run.base import (
    RECORD,
    adapted,
    load_base,
    load_tokenizer,
    make_base,
    placed,
    recommender_kind,
    save_base,
)
from fudlr.run.binding import FILE as BINDING
from fudlr.run.binding import check_columns, check_files, write_binding
from fudlr.run.recipe import with_recipe
from fudlr.run.shown import check_reads, show
from fudlr.train.adapter import train_adapter
from fudlr.train.checkpoint import Checkpoint
from fudlr_ext import Engine

ROWS = "rows.parquet"


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
    adapter: Path | None = None
    """Where θ* is from, if it is another one than the folder's own."""
    model: str | None = None
    """Digest of the base model's weights, where it is known already."""
    bound: Binding | None = None
    """Of stores that were merged; else what the fields give."""
    recipe: Mapping[str, Any] | None = None
    """How an adapter from elsewhere was trained, as far as that is known; None for one from here.
    """
    notes: tuple[str, ...] = ()
    """What each request from here warns of."""

    def __post_init__(self) -> None:
        self.recommender.engine = self.engine

    @property
    def interactions(self) -> Interactions:
        """The data that the split is of."""
        return self.split.interactions

    @cached_property
    def valid(self) -> Prompts:
        """The prompts that gradients come from."""
        factored = self.recommender.has_factors
        return make_prompts(self.split, self.split.valid, self.config.data, factored=factored)

    @cached_property
    def test(self) -> Prompts:
        """The prompts that figures are of."""
        factored = self.recommender.has_factors
        return make_prompts(self.split, self.split.test, self.config.data, factored=factored)

    @property
    def binding(self) -> Binding:
        """What rows of the training samples' gradients at `theta` are bound to."""
        if self.bound is not None:
            return self.bound
        if self.model is None:
            self.model = model_fingerprint(self.recommender.model)
        samples, window = self.split.train, self.config.data.window
        return bind(self.recommender, self.theta, samples, window, self.model)

    def where(self) -> dict[str, Any]:
        """Where figures of this run are computed, in which type, and which way each kind of the
        engine's passes took."""
        dtype = self.recommender.model.get_input_embeddings().weight.dtype  # type: ignore[operator]
        way = " ".join(map(str, self.engine.reports() or [self.engine.report()]))
        return {**facts(self.recommender.device, dtype), "way": way}

    def identity(self) -> dict[str, str]:
        """What a result from here is bound to, by the names in `binding.WORDS`."""
        plain = to_plain(self.config)
        options = {name: plain[name] for name in ("model", "recommender", "lora", "train", "seed")}
        return {
            **asdict(self.binding),
            "start": digest(self.start),
            "training": digest(options),
        }

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
        return load_ml100k()
    if config.source == "synthetic":
        return synthetic()
    return readers.read_data(config.source, config.columns)


def train_run(
    config: RunConfig,
    out: str | Path,
    clock: StageClock | None = None,
    *,
    overwrite: bool = False,
    required: bool = False,
    rows: Path | None = None,
    named: Collection[str] = (),
) -> Run:
    """Read, split, pretrain or load the base, train the adapter, and write it all to `out`.

    Args:
        config: All options.
        out: The run's folder.
        clock: Where the stages' seconds are noted.
        overwrite: Whether an earlier run in `out` may be replaced, once this one is whole.
        required: Refuse a training that cannot be recorded, rather than warn and train without.
        rows: What `lora.adapter` was trained on; the data's own training samples where None.
        named: Options that hold whatever the folder of `lora.adapter` says of its training.

    Raises:
        UsageError: `out` holds a run and `overwrite` is false, or holds anything else.
    """
    out, clock = Path(out), clock or StageClock()
    check_replaceable(out, "run")
    if not overwrite and (out / "config.yaml").is_file():
        raise UsageError(
            f"an adapter was to be trained into {out}",
            "there is a trained run already",
            "Name another folder with --out, or replace that run with --overwrite",
        )
    where, config = placed(config, None)
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
        base = make_base(split, config, where)
        if config.model.base == "small-llama":  # made by each rank; from files it is the same
            ranks().copy(*base.model.parameters())
    with atomic_folder(out, "run") as temporary:
        if ranks().first:  # it may be large, and is not read here
            save_base(base, temporary / "base")
        adopted = config.lora.adapter is not None
        model, engine, trained = adapted(base, config, where.device)
        lora.save(model, temporary / "start")
        if rows is not None:
            own = read_trained_rows(rows, split.interactions, base.tokenizer)
            split = replace(split, train=own)
            write_table(temporary / ROWS, kept(own))
        known, config = with_recipe(config, len(split.train), named)
        recommender = kind(model, base.tokenizer, split.interactions, config, base.record)
        check_reads(recommender, split.train)
        notes = recommender.notes(split.train if rows is None else split.valid)
        for note in notes:
            warnings.warn(note, DataWarning, stacklevel=2)
        start = engine.theta().cpu()
        run = Run(config, split, recommender, engine, start, start, 0.0, [], out)
        if trained is None:
            _train(run, out, temporary, clock, required)
        else:
            run.theta = trained
            run.recipe = known
            show(recommender, engine, trained, split.train, run.valid)
        lora.save(model, temporary / "adapter")
        run.train_seconds = 0.0 if adopted else clock.seconds["training"]
        item_ids = split.interactions.items["item_id"].to_list()
        items = {"kind": recommender.name, "item_ids": item_ids, **recommender.record()}
        write_json(temporary / RECORD, items)
        write_json(
            temporary / "train.json",
            {
                "losses": run.losses,
                "recipe": run.recipe,
                "pretrain_losses": base.losses,
                "notes": notes,
                "samples": len(split.train),
                "parameters": engine.d,
                "seconds": {**clock.seconds, "training": run.train_seconds},
                "cpu_seconds": clock.cpu_seconds,
                "device": run.where(),
                "versions": versions(),
                "seed": config.seed,
            },
        )
        dump_config(temporary / "config.yaml", config)
        write_binding(temporary, split.interactions, run.binding.model)
    model.eval()
    return run


def _train(run: Run, out: Path, folder: Path, clock: StageClock, required: bool) -> None:
    """Train `run` from its start, with what is recorded meanwhile written into `folder`."""
    config, face = run.config, (run.recommender, run.engine, run.split.train)
    beside = checkpoint = None
    if config.train.checkpoint:  # the training may be stopped and go on
        beside = out.parent / f".{out.name}.{STORE}"
        checkpoint = Checkpoint(out.parent, config.train.checkpoint, str(run.binding))
    riding = recording(
        *face, config=config, run=folder, clock=clock, folder=beside, required=required
    )
    with riding as recorder, clock.stage("training"):
        training = train_adapter(
            *face, config.train, run.start, recorder=recorder, checkpoint=checkpoint
        )
    run.theta, run.losses = training.theta, training.losses


class _Record(BaseModel):
    """RECORD, whatever its kind adds."""

    model_config = ConfigDict(extra="allow")
    kind: str
    item_ids: list[str]


class _Trained(BaseModel):
    """What of train.json is read again."""

    seconds: dict[str, float]
    losses: list[float]
    recipe: dict[str, Any] | None = None


def load_run(
    folder: str | Path,
    adapter: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """The run in `folder`, with its own trained adapter or with the one in `adapter`.

    Args:
        folder: What `train_run` wrote.
        adapter: Another adapter for the same base.
        settings: Options by their dotted names, in place of the run's own; those that nothing in
            its training depends on, see `fudlr.config.AFTER_TRAINING`.

    Raises:
        UsageError: The folder is not a run, or a setting comes too late.
        DataError: A part of the run, or its data, changed since it was made.
        ModelError: The base or the adapter cannot be loaded.
    """
    folder, adapter = Path(folder), Path(adapter) if adapter is not None else None
    needed = ("config.yaml", RECORD, "train.json", BINDING)
    missing = [n for n in needed if not (folder / n).is_file()]
    if missing:
        raise UsageError(
            f"the run in {folder} was to be loaded",
            f"{', '.join(missing)} is missing there",
            "Name a folder that `fudlr train --out` wrote",
        )
    config = merge_trained(load_config(folder / "config.yaml"), settings or {})
    where, config = placed(config, folder / "base")
    bound = check_files(folder)
    interactions = read_data(config.data)
    check_columns(folder, bound.columns, interactions)
    split = make_split(interactions, config.data)
    if (folder / ROWS).is_file():
        table = pl.read_parquet(folder / ROWS, glob=False)
        split = replace(split, train=restored(table, interactions))
    kind = recommender_kind(config)
    record = read_json(folder / RECORD, _Record).model_dump()
    trained = read_json(folder / "train.json", _Trained)
    base = load_base(folder / "base", where.dtype)
    tokenizer = load_tokenizer(folder / "base") if kind.prompted else None
    start_model = lora.load(base, folder / "start")
    start = Engine(start_model).theta()
    model = lora.load(start_model.unload(), adapter or folder / "adapter")
    model.to(where.device).eval()
    recommender = kind(model, tokenizer, split.interactions, config, record)
    # One row of the first batch is held to plain autograd.
    engine = Engine(model, check=True)
    if engine.d != len(start):
        raise ModelError(
            f"the adapter in {adapter} was to be used in the run {folder}",
            f"it has {engine.d} parameters, the run's own has {len(start)}",
            "Use an adapter with the rank and targets of this run",
        )
    return Run(
        config=config,
        split=split,
        recommender=recommender,
        engine=engine,
        start=start,
        theta=engine.theta().cpu(),
        train_seconds=trained.seconds.get("training", 0.0),
        losses=trained.losses,
        recipe=trained.recipe,
        folder=folder,
        adapter=adapter,
        model=bound.model,
    )
