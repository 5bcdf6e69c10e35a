"""Many real retrainings: in parallel, one thread each, resumable, one file a retraining.

Each is `train_adapter` with weights w, so that what differs from the run's own training is what the
weights say. A worker loads data and model once and trains one job after the other. Every finished
job is kept by a digest of all that it depends on: what is asked for again is read, and what was
interrupted is all that is lost.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.kept import Kept, key_of
from fudlr.common.parallel import alone, ranks
from fudlr.common.progress import track
from fudlr.config import TrainConfig
from fudlr.run import Run, load_run
from fudlr.train.adapter import train_adapter
from fudlr.train.checkpoint import Checkpoint


@dataclass(frozen=True)
class Job:
    """One retraining.

    Attributes:
        name: What people call it.
        weights: w of the training samples, [n]; all 1 where None.
        config: Training options; the run's own where None.
        start: Where it starts and what λ is centred on, [d]; the run's θ₀ where None.
        index: The training samples that there are, int64; all of them where None. Unlike a weight
            of 0, a sample that is not there leaves no gap in a batch.
    """

    name: str
    weights: Tensor | None = None
    config: TrainConfig | None = None
    start: Tensor | None = None
    index: Tensor | None = None


@dataclass(frozen=True)
class Retrained:
    """What a retraining gave: θ [d], the loss of each epoch, and the seconds it took."""

    theta: Tensor
    losses: list[float]
    seconds: float
    cpu_seconds: float


def removal(name: str, mask: Tensor, config: TrainConfig | None = None) -> Job:
    """The retraining without the samples that `mask` [n] marks."""
    return Job(name, 1 - mask.float(), config)


def retrain(
    run: Run,
    jobs: Sequence[Job],
    folder: Path | None = None,
    processes: int = 1,
    description: str = "retrain",
) -> list[Retrained]:
    """Do the jobs that `folder` does not hold yet, and return all of them, in order.

    Args:
        run: What to retrain; with several processes it must have a folder, from which the workers
            load it, and be what that folder holds.
        jobs: Which retrainings.
        folder: Where results are kept; nowhere if None.
        processes: Workers, each with one thread; 1 works in this process with its threads. Several
            ranks have none: each does its share of the jobs, or all of them one job together.
        description: What the progress line says.

    Raises:
        UsageError: Fewer than one process, or several without a folder to load the run from.
        DataError: A kept file is damaged.
        NumericalError: A loss is not finite.
    """
    if processes < 1 or (processes > 1 and run.folder is None):
        raise UsageError(
            f"{processes} processes were to retrain",
            "there must be at least one, and several must load the run from its folder",
            "Give 1, or a run that `fudlr train` wrote",
        )
    found = {i: done for i, job in enumerate(jobs) if (done := _read(run, job, folder))}
    here = ranks()
    open_jobs = here.told([i for i in range(len(jobs)) if i not in found])
    if here.size > 1 and folder is not None and len(open_jobs) >= here.size:
        # A job each, and what is kept is read by all.
        mine = open_jobs[here.rank :: here.size]
        with alone():
            for i in track(mine, description=description):
                _work(run, jobs[i], folder)
        here.agree()
    elif here.size == 1 and processes > 1 and len(open_jobs) > 1:
        todo = [jobs[i] for i in open_jobs]
        for at, result in _in_processes(run, todo, folder, processes, description):
            found[open_jobs[at]] = result
    else:
        for i in track(open_jobs, description=description) if len(open_jobs) > 1 else open_jobs:
            found[i] = _work(run, jobs[i], folder)
    return [found[i] if i in found else _kept(run, job, folder) for i, job in enumerate(jobs)]


def _kept(run: Run, job: Job, folder: Path | None) -> Retrained:
    """What another rank did."""
    found = _read(run, job, folder)
    assert found is not None  # it was kept before all went on
    return found


def key(run: Run, job: Job) -> str:
    """A digest of everything that the job's result depends on."""
    config = (job.config or run.config.train).model_dump(mode="json")
    return key_of(run.identity(), job.weights, job.start, job.index, config)


def _read(run: Run, job: Job, folder: Path | None) -> Retrained | None:
    """What is kept of a job's result; None where there is nothing.

    Raises:
        DataError: The file is damaged.
    """
    found = Kept(folder).read(key(run, job)) if folder else None
    if found is None:
        return None
    tensors, facts = found
    return Retrained(tensors["theta"], facts["losses"], facts["seconds"], facts["cpu_seconds"])


def _work(run: Run, job: Job, folder: Path | None) -> Retrained:
    """Do one job in this process; the run's model holds the retrained adapter afterwards."""
    samples = run.split.train if job.index is None else run.split.train.take(job.index.numpy())
    config, checkpoint = job.config or run.config.train, None
    if folder is not None and config.checkpoint:
        checkpoint = Checkpoint(folder, config.checkpoint, str(run.binding))
    wall, cpu = time.perf_counter(), time.process_time()
    training = train_adapter(
        run.recommender,
        run.engine,
        samples,
        config,
        run.start if job.start is None else job.start,
        weights=job.weights,
        description=job.name,
        checkpoint=checkpoint,
    )
    seconds = (time.perf_counter() - wall, time.process_time() - cpu)
    result = Retrained(training.theta, training.losses, *seconds)
    if folder is not None:
        facts = {name: value for name, value in vars(result).items() if name != "theta"}
        Kept(folder).write(key(run, job), {"theta": result.theta}, {"name": job.name, **facts})
    return result


def default_processes() -> int:
    """One worker a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_loaded: list[Run] = []
"""A worker's run."""


def _in_processes(
    run: Run, jobs: Sequence[Job], folder: Path | None, processes: int, description: str
) -> list[tuple[int, Retrained]]:
    """The jobs' results by their place, as workers finish them."""
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)),
        get_context("spawn"),
        initializer=_load,
        initargs=(str(run.folder), run.theta, str(run.recommender.device)),
    )
    try:
        futures = {pool.submit(_work_loaded, job, folder): at for at, job in enumerate(jobs)}
        done = track(as_completed(futures), len(futures), description)
        return [(futures[future], future.result()) for future in done]
    finally:
        # What runs finishes and is kept; what waits is not begun.
        pool.shutdown(wait=True, cancel_futures=True)


def end_with_parent() -> None:
    """End this worker when the process that started it is killed: it would wait for ever."""
    parent = parent_process()
    if parent is not None:
        handle = parent.sentinel

        def wait() -> None:
            connection.wait([handle])
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def _load(folder: str, theta: Tensor, device: str) -> None:
    end_with_parent()
    os.environ["FUDLR_QUIET"] = "1"
    torch.set_num_threads(1)
    _loaded[:] = [load_run(folder, settings={"model.device": device})]
    _loaded[0].theta = theta


def _work_loaded(job: Job, folder: Path | None) -> Retrained:
    return _work(_loaded[0], job, folder)
