"""Many real retrainings: in parallel, one thread each, resumable, one file a retraining.

Each is `train_adapter` with weights w, so that what differs from the run's own training is what the
weights say. A worker loads data and model once and trains one job after the other. Every finished
job is a file of its own, named by a digest of all that it hangs on: what is asked for again is
read, and what was interrupted is all that is lost.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.digest import digest
from fudlr.common.errors import DataError, UsageError
from fudlr.common.files import atomic_file
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
        processes: Workers, each with one thread; 1 works in this process with its threads.
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
    paths = [None if folder is None else folder / f"{key(run, job)}.safetensors" for job in jobs]
    found = {i: read(path) for i, path in enumerate(paths) if path is not None and path.is_file()}
    open_jobs = [i for i in range(len(jobs)) if i not in found]
    if processes > 1 and len(open_jobs) > 1:
        todo = [(jobs[i], paths[i]) for i in open_jobs]
        for at, result in _in_processes(run, todo, processes, description):
            found[open_jobs[at]] = result
    else:
        for i in track(open_jobs, description=description) if len(open_jobs) > 1 else open_jobs:
            found[i] = work(run, jobs[i], paths[i])
    return [found[i] for i in range(len(jobs))]


def work(run: Run, job: Job, path: Path | None = None) -> Retrained:
    """Do one job in this process; the run's model holds the retrained adapter afterwards."""
    samples = run.split.train if job.index is None else run.split.train.take(job.index.numpy())
    config = job.config or run.config.train
    wall, cpu = time.perf_counter(), time.process_time()
    training = train_adapter(
        run.recommender,
        run.engine,
        samples,
        config,
        run.start if job.start is None else job.start,
        weights=job.weights,
        description=job.name,
        checkpoint=_checkpoint(run, config, path),
    )
    seconds = (time.perf_counter() - wall, time.process_time() - cpu)
    result = Retrained(training.theta, training.losses, *seconds)
    if path is not None:
        write(path, job.name, result)
    return result


def _checkpoint(run: Run, config: TrainConfig, path: Path | None) -> Checkpoint | None:
    """Beside where the result is kept, as the options say."""
    if path is None or not config.checkpoint:
        return None
    return Checkpoint(path.parent, config.checkpoint, str(run.binding))


def key(run: Run, job: Job) -> str:
    """A digest of everything that the job's result hangs on."""
    config = (job.config or run.config.train).model_dump(mode="json")
    return digest(run.identity(), job.weights, job.start, job.index, config)[:24]


def write(path: Path, name: str, result: Retrained) -> None:
    """Write one result, whole or not at all."""
    facts = {
        "name": name,
        "losses": result.losses,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "sha256": digest(result.theta),
    }
    with atomic_file(path) as temporary:
        save_file({"theta": result.theta}, temporary, {"facts": json.dumps(facts)})


def read(path: Path) -> Retrained:
    """Read one result.

    Raises:
        DataError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts, theta = json.loads(file.metadata()["facts"]), file.get_tensor("theta")
        if digest(theta) != facts["sha256"]:
            raise ValueError("its numbers are not those that were written")
        return Retrained(theta, facts["losses"], facts["seconds"], facts["cpu_seconds"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the retraining kept in {path} was to be read",
            f"the file is damaged ({error})",
            "Delete it: it will be made again",
        ) from error


def default_processes() -> int:
    """One worker a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_loaded: Run | None = None
"""A worker's run."""


def _in_processes(
    run: Run, todo: Sequence[tuple[Job, Path | None]], processes: int, description: str
) -> list[tuple[int, Retrained]]:
    """The jobs' results by their place, as workers finish them."""
    pool = ProcessPoolExecutor(
        min(processes, len(todo)),
        get_context("spawn"),
        initializer=_load,
        initargs=(run.folder, run.theta),
    )
    try:
        futures = {pool.submit(_work, job, path): at for at, (job, path) in enumerate(todo)}
        done = track(as_completed(futures), len(futures), description)
        return [(futures[future], future.result()) for future in done]
    finally:
        # What runs finishes and is kept; what waits is not begun.
        pool.shutdown(wait=True, cancel_futures=True)


def _load(folder: Path | None, theta: Tensor) -> None:
    global _loaded  # noqa: PLW0603  (the only way to hand a worker's state to its jobs)
    if folder is None:
        raise UsageError("a worker was to load a run", "it has no folder", "Use 1 process")
    os.environ["FUDLR_QUIET"] = "1"
    torch.set_num_threads(1)
    _loaded = load_run(folder)
    _loaded.theta = theta


def _work(job: Job, path: Path | None) -> Retrained:
    if _loaded is None:
        raise UsageError("a worker was to retrain", "it has no run", "Report this as a bug")
    return work(_loaded, job, path)
