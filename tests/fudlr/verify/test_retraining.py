"""Retrainings: kept, read again, the same in another process, and lost only where interrupted."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fudlr import load_run
from fudlr.common.errors import DataError, UsageError
from fudlr.verify import Job, removal, retrain, retraining
from fudlr.verify.retraining import key


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder)


@pytest.fixture(scope="module")
def short(run):
    return run.config.train.model_copy(update={"epochs": 1})


def masks(run, count=2):
    n = len(run.split.train)
    return [torch.nn.functional.one_hot(torch.tensor(i), n).float() for i in range(count)]


def test_several_processes_give_what_one_gives(run, short, tmp_path):
    jobs = [removal(f"{i}", mask, short) for i, mask in enumerate(masks(run))]
    here = retrain(run, jobs)
    there = retrain(run, jobs, tmp_path, processes=2)
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one.theta, other.theta, rtol=1e-5, atol=1e-6)
        assert other.seconds > 0
        assert len(other.losses) == 1
    assert not torch.equal(here[0].theta, here[1].theta)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


ORPHAN = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from fudlr.verify.retraining import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    (tmp_path / "orphan.py").write_text(ORPHAN)
    command = [sys.executable, tmp_path / "orphan.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        process.kill()
    end = time.monotonic() + 20
    while time.monotonic() < end and _lives(worker):
        time.sleep(0.05)
    assert not _lives(worker)


def _lives(process):
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_what_is_kept_is_not_done_again_and_an_interruption_loses_what_was_running(
    run, short, tmp_path, monkeypatch
):
    jobs = [removal(f"{i}", mask, short) for i, mask in enumerate(masks(run, 3))]
    original, calls = retraining.train_adapter, []

    def interrupted(*arguments, **options):
        calls.append(options["description"])
        if calls == ["0", "1"]:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(retraining, "train_adapter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retrain(run, jobs, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{key(run, jobs[0])}.safetensors"]
    first = retrain(run, jobs[:2], tmp_path)
    again = retrain(run, jobs, tmp_path)
    assert calls == ["0", "1", "1", "2"]
    assert torch.equal(first[1].theta, again[1].theta)


def test_the_key_depends_on_everything_that_the_result_does(run, short):
    n = len(run.split.train)
    plain = Job("a", torch.ones(n), short)
    keys = [
        key(run, job)
        for job in (
            plain,
            replace(plain, weights=torch.zeros(n)),
            replace(plain, weights=None),
            replace(plain, config=run.config.train),
            replace(plain, start=run.theta),
            replace(plain, index=torch.arange(3)),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert key(run, replace(plain, name="b")) == keys[0]
    assert key(replace(run, start=run.start + 1), plain) != keys[0]


def test_a_damaged_file_and_processes_without_a_folder_are_refused(run, short, tmp_path):
    job = removal("x", masks(run)[0], short)
    retrain(run, [job], tmp_path)
    (path,) = tmp_path.iterdir()
    for damaged in (b"not safetensors", path.read_bytes()[:-4] + b"\x00\x00\x80\x3f"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=path.name):
            retrain(run, [job], tmp_path)
    with pytest.raises(UsageError, match="processes"):
        retrain(replace(run, folder=None), [Job("x", config=short)], processes=2)


def test_a_part_of_the_samples_trains_on_them_alone(run, short):
    """Weights of 0 leave gaps in the batches; an index leaves none."""
    index = torch.arange(200)
    weights = torch.zeros(len(run.split.train))
    weights[index] = 1
    part, gaps = retrain(run, [Job("part", None, short, index=index), Job("gaps", weights, short)])
    assert part.losses[0] == pytest.approx(gaps.losses[0] * len(weights) / 200, rel=0.3)
    assert not torch.allclose(part.theta, gaps.theta)
