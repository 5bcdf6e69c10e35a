"""Up to 10⁷ interactions: how time and memory grow, and the share of retraining.

The interactions are a stream (`stream`), cut at four sizes. A tiny recommender is trained on the
beginning of it, once. Then, at each size, in processes of their own so that peak memory is theirs:

    record      every training sample's sketched gradient, block by block, into a store
    request     metric gradients, conjugate gradients over the store, scores, mask, update
    training    CPU seconds of an epoch for a sample, on five slices of the stream

Retraining is not run to its end at any size: it is extrapolated,

    retraining = epochs · samples · (median over the slices of training's CPU seconds a sample)

and is named so wherever it stands. The adapter was not trained on the whole stream: what is
measured is cost. Drawing the data is timed apart, and is no part of any cost.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from fudlr import load_run
from fudlr.common.progress import StageClock, track
from fudlr.data import leave_last_out
from fudlr.evaluation import make_prompts
from fudlr.gradients import Space
from fudlr.gradients.metric import metric_gradients
from fudlr.gradients.store import Binding, Store, StoredRows, StoreWriter, digest
from fudlr.influence.update import removal_update
from fudlr.metrics import Objective
from fudlr.pipeline.evidence import sketch_solver
from fudlr.pipeline.request import choose_mask, influences, weigh
from fudlr.record.scoring import append_samples
from fudlr.run import Run
from fudlr.train.adapter import train_adapter
from fudlr.verify.removals import surrogates
from processes import in_own_process, peak_bytes

from experiments.common import Experiment, Options, Outcome, trained, write_recbole
from experiments.stream import LENGTH, Stream

SIZES = (10**4, 10**5, 10**6, 10**7)
TRAINED = 2
"""Blocks of the stream that the adapter is trained on."""
SLOPE = 0.1
"""How far from 1 the slope of log time over log size may be."""
MEMORY = 2.0
"""Times the peak memory at the smallest size: what a thousand times the data may take."""
GROWTH = 0.02
"""Largest slope of log share over log size that counts as none: 5% for ten times the data."""
PROMPTS = 200
"""Users whose prompts give the metrics' gradients, whatever the size: as `data.prompt_users`."""
SHARD_BYTES = 2**27
"""Of a shard of the store."""
SLICES = 5


def _stream(options: Options, seed: int):
    """The stream, and where it is cut."""
    if options.small:
        stream = Stream(seed, n_items=120, block_users=20)
        return stream, (stream.block_size, 3 * stream.block_size)
    return Stream(seed), SIZES


def _cells(options: Options):
    return {
        f"{size} interactions, seed {seed}": partial(_of_size, options, seed, size)
        for seed in options.seeds
        for size in _stream(options, seed)[1]
    }


def _of_size(options: Options, seed: int, size: int):
    stream, _ = _stream(options, seed)
    folder = _model(options, stream)
    work = options.out / "stores" / f"{size}-{seed}"
    shutil.rmtree(work, ignore_errors=True)  # of an interrupted cell: half a store's time is none
    work.mkdir(parents=True)
    measured = (lambda stage, *args: stage(*args)) if options.small else in_own_process
    try:
        recorded = measured(record, folder, stream, size, work)
        asked = measured(request, folder, stream, size, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    trained_for = measured(training, folder, stream, size)
    epochs = load_run(folder).config.train.epochs
    retraining = epochs * recorded["samples"] * trained_for["median"]
    record_seconds = recorded["cpu_seconds"]["record"]
    request_seconds = sum(s for name, s in asked["cpu_seconds"].items() if name != "draw")
    return {
        "interactions": size,
        "seed": seed,
        "record": recorded,
        "request": asked,
        "training": trained_for,
        "epochs": epochs,
        "record_seconds": record_seconds,
        "request_seconds": request_seconds,
        "retraining_seconds_extrapolated": retraining,
        "share": (record_seconds + request_seconds) / retraining,
        "request_share": request_seconds / retraining,
        "peak_bytes": max(recorded["peak_bytes"], asked["peak_bytes"]),
    }


def _model(options: Options, stream: Stream) -> Path:
    """The run whose model all sizes use, trained on the stream's beginning."""
    source = options.out / "data" / f"{stream.n_items}-{stream.block_users}-{stream.seed}"
    if not (source / "stream.inter").is_file():
        write_recbole(source, "stream", stream.first(TRAINED))
    settings = {"data.source": str(source), "seed": stream.seed}
    return trained(options, settings, f"seed-{stream.seed}").folder


def _loaded(folder: Path) -> Run:
    torch.set_num_threads(1)
    run = load_run(folder)
    run.engine.load(run.theta)
    return run


def _binding(run: Run, stream: Stream, size: int) -> Binding:
    """What rows of the first `size` interactions of the stream are made from."""
    facts = (stream.seed, stream.n_items, stream.block_users, size)
    return replace(run.binding, data=digest(*facts), order=digest("as they come"))


def _split(block):
    """All of a block's positions but each user's first and last two are training targets."""
    return leave_last_out(block, max_train_per_user=LENGTH, pretrain_share=0.0)


def record(folder: Path, stream: Stream, size: int, work: Path):
    """Record the training samples of the first `size` interactions into a store in `work`."""
    run = _loaded(folder)
    projection = run.store().projection()  # the run was trained with recording
    clock = StageClock(announce=False)
    bound = _binding(run, stream, size)
    popularity = np.zeros(stream.n_items, dtype=np.int64)
    samples, course = 0, digest(vars(bound))
    with StoreWriter(
        work / "store", course, run.engine.d, run.config.record.dtype, shard_bytes=SHARD_BYTES
    ) as writer:
        writer.use(projection)
        for number in track(range(size // stream.block_size), description=f"record {size}"):
            with clock.stage("draw"):
                block = stream.block(number)
            with clock.stage("record"):
                split = _split(block)
                ids = torch.from_numpy(split.train.ids) + number * stream.block_size
                append_samples(run, split.train, writer, ids=ids)
                popularity += split.popularity
                samples += len(split.train)
        with clock.stage("record"):
            writer.finish(bound)
    np.save(work / "popularity.npy", popularity)
    return {"samples": samples, "cpu_seconds": clock.cpu_seconds, "peak_bytes": peak_bytes()}


def request(folder: Path, stream: Stream, size: int, work: Path):
    """A request to the store in `work`: from metric gradients to an updated adapter."""
    run = _loaded(folder)
    config = run.config.debias
    objective = Objective.parse(config.objective)
    clock = StageClock(announce=False)
    with clock.stage("draw"):
        users = stream.spread(size, min(PROMPTS, size // LENGTH))
        split = replace(_split(users), popularity=np.load(work / "popularity.npy"))
        prompts = make_prompts(split, split.valid, run.config.data)
    with clock.stage("open the store"):
        store = Store.open(work / "store", _binding(run, stream, size))
        space = Space(StoredRows(store), store.n, store.projection())
    with clock.stage("metric gradients"):
        metrics = [term.metric for term in objective.terms]
        gradients = metric_gradients(
            run.recommender, run.engine, prompts.samples, prompts.side, metrics
        )
    with clock.stage("scores"):
        solve = sketch_solver(space, config.damping)
        scored = weigh(
            space, influences(space, [gradients], solve)[0], gradients, objective, config
        )
    with clock.stage("mask"):
        mask = choose_mask(scored.score, config).remove
    with clock.stage("update"):
        update = removal_update(run.theta, space.rows, mask, solve, lift=space.lift)
    spent = {"cpu_seconds": clock.cpu_seconds, "peak_bytes": peak_bytes()}
    # What is measured below is no part of a request.
    names = objective.names
    before, after = (surrogates(run, prompts, names, theta) for theta in (run.theta, update.theta))
    return {
        "rows": store.n,
        "bytes": store.bytes,
        "removed": int(mask.sum()),
        "predicted": {name: scored.predicted(mask)[name] for name in names},
        "measured": {name: after[name] - before[name] for name in names},
        **spent,
    }


def training(folder: Path, stream: Stream, size: int):
    """CPU seconds of training for a sample and epoch, on slices of the stream."""
    run = _loaded(folder)
    config = run.config.train.model_copy(update={"epochs": 1})
    last = size // stream.block_size - 1
    found = []
    # The first pass warms caches up and is not counted.
    for number in (0, *np.linspace(0, last, SLICES).round().astype(int).tolist()):
        samples = _split(stream.block(number)).train
        start = time.process_time()
        train_adapter(run.recommender, run.engine, samples, config, run.start)
        found.append((time.process_time() - start) / len(samples))
    return {"seconds_a_sample": found[1:], "median": median(found[1:]), "peak_bytes": peak_bytes()}


def _by_seed(cells):
    """The cells of each seed, by size."""
    seeds = sorted({cell["seed"] for cell in cells.values()})
    found = [[cell for cell in cells.values() if cell["seed"] == seed] for seed in seeds]
    return [sorted(line, key=lambda cell: cell["interactions"]) for line in found]


def _trend(line, values) -> float:
    """Slope of the least squares line of log values over log size."""
    sizes = np.log([cell["interactions"] for cell in line])
    return float(np.polyfit(sizes, np.log(values), 1)[0])


def _steps(line) -> list[float]:
    """Slopes of log CPU time over log size, from each size to the next."""
    sizes = np.log([cell["interactions"] for cell in line])
    costs = np.log([cell["record_seconds"] + cell["request_seconds"] for cell in line])
    return (np.diff(costs) / np.diff(sizes)).tolist()


def _outcomes(cells):
    lines = _by_seed(cells)
    slopes = [_steps(line) for line in lines]
    growth = [line[-1]["peak_bytes"] / line[0]["peak_bytes"] for line in lines]
    trends = [_trend(line, [cell["share"] for cell in line]) for line in lines]
    whole = [cell["request"]["rows"] == cell["record"]["samples"] for cell in cells.values()]
    fall = [value < 0 for cell in cells.values() for value in cell["request"]["measured"].values()]
    return [
        Outcome(
            "time is linear: the slope of log CPU time (recording and request) over log size is at "
            f"most {1 + SLOPE:g} from any size to the next, and at least {1 - SLOPE:g} between the "
            "last two",
            all(max(steps) <= 1 + SLOPE and steps[-1] >= 1 - SLOPE for steps in slopes),
            "; ".join(" ".join(f"{step:.3f}" for step in steps) for steps in slopes),
        ),
        Outcome(
            f"memory is flat: the peak at the largest size is at most {MEMORY:g} times that at the "
            "smallest",
            all(each <= MEMORY for each in growth),
            ", ".join(f"{each:.2f}" for each in growth),
        ),
        Outcome(
            "the share of retraining (extrapolated from slices) does not grow: the slope of its "
            f"logarithm over log size is at most {GROWTH:g}",
            all(each <= GROWTH for each in trends),
            ", ".join(f"{each:+.3f}" for each in trends),
        ),
        Outcome(
            "every sample has a row, and the update lowers the metric that was asked for",
            all(whole) and all(fall),
            f"{sum(whole)} of {len(whole)} stores are whole, {sum(fall)} of {len(fall)} fell",
        ),
    ]


def _rows(cells):
    return [
        {
            "interactions": f"{cell['interactions']:,}",
            "samples": f"{cell['record']['samples']:,}",
            "store MB": f"{cell['request']['bytes'] / 1e6:.1f}",
            "record s": f"{cell['record_seconds']:.2f}",
            "request s": f"{cell['request_seconds']:.2f}",
            "retraining s, extrapolated": f"{cell['retraining_seconds_extrapolated']:.1f}",
            "share": f"{cell['share']:.1%}",
            "request alone": f"{cell['request_share']:.2%}",
            "peak MB": f"{cell['peak_bytes'] / 1e6:.0f}",
        }
        for line in _by_seed(cells)
        for cell in line
    ]


EXPERIMENT = Experiment(
    "Up to 10⁷ interactions: how do time, memory and the share of retraining grow?",
    _cells,
    _outcomes,
    _rows,
    defaults={
        "data.window": 8,
        "model.hidden": 32,
        "model.layers": 1,
        "model.heads": 2,
        "model.kv_heads": 2,
        "model.intermediate": 32,
        "lora.rank": 2,
        "lora.targets": ("q_proj", "v_proj", "o_proj", "down_proj"),
        "train.batch": 1024,
        "record.epochs": "last",
        "debias.damping": 0.03,
        "debias.lambda_acc": 1.0,
    },
)
