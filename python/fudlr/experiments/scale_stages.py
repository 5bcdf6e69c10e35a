"""The stages that `scale` measures, each to be run in a process of its own.

They are the product's own: `record.append_samples` into a `StoreWriter`, and a request as
`fudlr debias` makes it from a store, its rows streamed. The data come block by block, and what is
kept of a block is its rows in the store and a count for each item.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fudlr.common.files import atomic_file
from fudlr.common.processes import peak_bytes
from fudlr.common.progress import StageClock, track
from fudlr.data import Interactions, Samples, Split, leave_last_out
from fudlr.evaluation import Prompts, make_prompts
from fudlr.experiments.base import Record
from fudlr.experiments.stream import LENGTH, Stream
from fudlr.gradients.metric import metric_gradients
from fudlr.gradients.store import Binding, Store, StoredRows, StoreWriter, fingerprint, sketch_space
from fudlr.influence.update import removal_update
from fudlr.metrics import Objective
from fudlr.pipeline.evidence import sketch_solver
from fudlr.pipeline.request import choose_mask, score_samples
from fudlr.record.scoring import append_samples
from fudlr.run import Run, load_run
from fudlr.train.adapter import train_adapter
from fudlr.verify.changes import surrogates

PROMPTS = 200
"""Users whose prompts give the metrics' gradients, whatever the size: as `data.prompt_users`."""
PART = 10**6
"""Interactions recorded under one writer's name: facts are written anew with each of its shards."""
SHARD_ROWS = 10**5
DEPTHS = 5
"""Places of the stream at which training is measured."""
STORE, POPULARITY = "store", "popularity.npy"


def binding(run: Run, stream: Stream, size: int) -> Binding:
    """What rows of the first `size` interactions of the stream are made from."""
    facts = (stream.seed, stream.n_items, stream.block_users, size)
    return replace(run.binding, data=fingerprint(*facts), order=fingerprint("as they come"))


def split_block(block: Interactions) -> Split:
    """All of a block's positions but each user's first and last two are training targets."""
    return leave_last_out(block, max_train_per_user=LENGTH, pretrain_share=0.0)


def record(folder: Path, stream: Stream, size: int, work: Path) -> Record:
    """Record the training samples of the first `size` interactions into a store in `work`."""
    torch.set_num_threads(1)
    run = _loaded(folder)
    own = run.store()
    assert own is not None  # the run was trained with record.ride
    projection = own.projection()
    assert projection is not None
    clock, idle = StageClock(announce=False), peak_bytes()
    config, bound = run.config.record, binding(run, stream, size)
    popularity = np.zeros(stream.n_items, dtype=np.int64)
    samples = 0
    blocks = track(range(size // stream.block_size), description=f"record {size} interactions")
    writer: StoreWriter | None = None
    for number in blocks:
        with clock.stage("draw"):
            block = stream.block(number)
        with clock.stage("record"):
            if number * stream.block_size % PART == 0:
                if writer is not None:
                    writer.close()
                writer = StoreWriter(
                    work / STORE,
                    bound,
                    projection.dim,
                    config.dtype,
                    writer=f"{number:08d}",
                    shard_rows=max(SHARD_ROWS, config.batch),
                    projection=projection,
                    facts=run.engine.d,
                )
            assert writer is not None
            split = split_block(block)
            ids = torch.from_numpy(split.train.ids) + number * stream.block_size
            append_samples(run, split.train, ids, writer, config)
            popularity += split.popularity
            samples += len(split.train)
    with clock.stage("record"):
        if writer is not None:
            writer.close()
    with atomic_file(work / POPULARITY) as temporary, temporary.open("wb") as file:
        np.save(file, popularity)
    return {"samples": samples, **_spent(clock, idle)}


def request(folder: Path, stream: Stream, size: int, work: Path) -> Record:
    """A request to the store in `work`: from metric gradients to an updated adapter."""
    torch.set_num_threads(1)
    run = _loaded(folder)
    config = run.config.debias
    objective = Objective.parse(config.objective)
    assert config.damping is not None  # among the experiment's defaults
    clock, idle = StageClock(announce=False), peak_bytes()
    with clock.stage("draw"):
        prompts = _prompts(run, stream, size, np.load(work / POPULARITY))
    with clock.stage("open the store"):
        store = Store.open(work / STORE, binding(run, stream, size))
        projection = store.projection()
        assert projection is not None
        space = sketch_space(StoredRows(store), projection)
    with clock.stage("metric gradients"):
        metrics = [term.metric for term in objective.terms]
        gradients = metric_gradients(
            run.recommender, run.engine, prompts.samples, prompts.side, metrics
        )
    with clock.stage("scores"):
        solve = sketch_solver(space, config.damping, config.max_steps)
        scored = score_samples(space, gradients, objective, solve, config)
    with clock.stage("mask"):
        mask = choose_mask(scored.score, config).remove
    with clock.stage("update"):
        update = removal_update(run.theta, space.rows, mask, solve, lift=space.lift)
    spent = _spent(clock, idle)  # what is measured below is no part of a request
    names = objective.names
    before, after = (surrogates(run, prompts, names, theta) for theta in (run.theta, update.theta))
    return {
        "rows": store.n,
        "bytes": store.bytes,
        "removed": int(mask.sum()),
        "steps": scored.influence.solution.steps,
        "predicted": {name: scored.predicted(mask)[name] for name in names},
        "measured": {name: after[name] - before[name] for name in names},
        **spent,
    }


def training(folder: Path, stream: Stream, size: int) -> Record:
    """CPU seconds of training for a sample and epoch, at several depths of the stream."""
    torch.set_num_threads(1)
    run = _loaded(folder)
    idle = peak_bytes()
    config = run.config.train.model_copy(update={"epochs": 1})
    last = size // stream.block_size - 1
    found = []
    # The first pass warms caches up and is not counted.
    for number in (0, *np.linspace(0, last, DEPTHS).round().astype(int).tolist()):
        samples = split_block(stream.block(number)).train
        start = time.process_time()
        train_adapter(run.recommender, run.engine, samples, config, run.start)
        found.append((time.process_time() - start) / len(samples))
    return {
        "seconds_a_sample": found[1:],
        "median": median(found[1:]),
        "peak_bytes": peak_bytes(),
        "idle_bytes": idle,
    }


def _loaded(folder: Path) -> Run:
    run = load_run(folder)
    run.engine.load(run.theta)
    return run


def _prompts(run: Run, stream: Stream, size: int, popularity: np.ndarray) -> Prompts:
    users = stream.spread(size, min(PROMPTS, size // LENGTH))
    split = replace(split_block(users), popularity=popularity)
    samples: Samples = split.valid
    return make_prompts(split, samples, run.config.data)


def _spent(clock: StageClock, idle: int) -> Record:
    return {
        "cpu_seconds": clock.cpu_seconds,
        "seconds": clock.seconds,
        "peak_bytes": peak_bytes(),
        "idle_bytes": idle,
    }
