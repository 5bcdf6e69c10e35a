"""Requests in several processes: the mask and the update of one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fudlr import debias, forget, load_run
from fudlr.common import parallel
from fudlr.gradients.metric import metric_gradients
from fudlr.metrics import find_metric
from fudlr.metrics.score_function import DrawnLists
from fudlr.verify import Job, removal, retrain
from rank_cases import command, together
from safetensors.torch import load_file, save_file

REQUESTS = {
    "unrolled": {"objective": "arp + 0.5*hellinger"},
    "store": {"objective": "hellinger", "update": "closed_form"},
    "memory": {"objective": "gini", "rows": "memory"},
    "stream": {"objective": "arp", "rows": "stream", "candidates": 0.5},
}


def answers(folder: Path, out: Path) -> None:
    """Every kind of request, and what they consist of, as tensors in a file."""
    parallel.start()
    run, found = load_run(folder), {}
    for name, options in REQUESTS.items():
        result = debias(run, curve=(), heldout=name == "unrolled", force=True, **options)
        found |= {f"{name}: mask": result.mask, f"{name}: shift": result.theta - run.theta}
        figures = [value for value in result.after.metrics.values() if not math.isnan(value)]
        found[f"{name}: figures"] = torch.tensor(figures, dtype=torch.float64)
    users = [str(run.interactions.users["user_id"][user]) for user in (0, 7)]
    result = forget(run, users=users, force=True)
    found |= {"forget: mask": result.mask, "forget: shift": result.theta - run.theta}
    weights = torch.ones(len(run.split.train))
    weights[::3] = 0
    (kept,) = retrain(run, [Job("kept", weights)])
    found["retrained"] = kept.theta - run.start
    if parallel.ranks().first:
        contiguous = {key: value.contiguous() for key, value in found.items()}
        save_file(contiguous, out / f"answers-{parallel.ranks().size}.safetensors")
    parallel.end()


@pytest.fixture(scope="module")
def alone(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    answers(run_folder, out)
    return load_file(out / "answers-1.safetensors")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_masks_and_updates_are_those_of_one_process(tmp_path, run_folder, alone, size):
    together(size, answers, run_folder, tmp_path, folder=tmp_path)
    found = load_file(tmp_path / f"answers-{size}.safetensors")
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        if name.endswith("mask"):
            assert torch.equal(found[name], value), name
            assert value.any(), name
        else:  # float32, through solves that stop at a residual of 1e-2 to 1e-5
            assert (found[name] - value).norm() <= 1e-3 * value.norm(), name


def gradients(out: Path) -> None:
    """Of metrics that are functions of sums over users, and of one that needs all scores."""
    parallel.start()
    run = load_run(out.parent / "run")
    metrics = [find_metric(name) for name in ("hellinger", "dp", "gini", "ndcg")]
    metrics.append(DrawnLists("drawn", find_metric("arp"), True, draws=4))
    face = (run.recommender, run.engine, run.valid.samples, run.valid.side, metrics)
    found = {}
    for parts in ((), (30, 1, 169)):
        each = metric_gradients(
            *face, batch_size=64, graph_bytes=0 if parts else 2**30, parts=parts
        )
        found[f"{len(parts)}"] = torch.stack([one.gradient for one in each.values()])
        found[f"{len(parts)} values"] = torch.tensor([one.value for one in each.values()])
        found[f"{len(parts)} scores"] = each.scores
        if parts:
            found["shares"] = each.parts
    if parallel.ranks().first:
        save_file(found, out / f"gradients-{parallel.ranks().size}.safetensors")
    parallel.end()


def test_gradients_of_metrics_over_users_that_are_shared(tmp_path, run_folder):
    (tmp_path / "run").symlink_to(run_folder)
    out = tmp_path / "out"
    out.mkdir()
    gradients(out)
    together(3, gradients, out, folder=tmp_path)
    one, three = (load_file(out / f"gradients-{size}.safetensors") for size in (1, 3))
    assert one["shares"].shape[0] == 3
    for name, value in one.items():
        assert (three[name] - value).norm() <= 1e-5 * value.norm(), name


def test_retrainings_are_shared_as_independent_jobs(tmp_path, run_folder):
    """Each rank does some, whole files are kept, and what is there is not done again."""
    folder = tmp_path / "kept"
    together(2, retrainings, run_folder, folder, folder=tmp_path)
    assert len(list(folder.glob("*.safetensors"))) == 2
    run = load_run(run_folder)
    assert torch.equal(retrained(run, folder), load_file(tmp_path / "found.safetensors")["theta"])
    # One process's own, bit for bit: a job is no longer shared.
    alone = retrained(run, tmp_path / "own")
    assert torch.equal(alone, load_file(tmp_path / "found.safetensors")["theta"])


def retrained(run, folder: Path) -> torch.Tensor:
    masks = [torch.zeros(len(run.split.train)) for _ in range(2)]
    for number, mask in enumerate(masks):
        mask[number::7] = 1
    jobs = [removal(f"without {number}", mask) for number, mask in enumerate(masks)]
    return torch.stack([each.theta for each in retrain(run, jobs, folder)])


def retrainings(folder: Path, kept: Path) -> None:
    parallel.start()
    found = retrained(load_run(folder), kept)
    if parallel.ranks().first:
        save_file({"theta": found}, kept.parent / "found.safetensors")
    parallel.end()


def test_the_commands_write_what_one_process_writes(tmp_path, run_folder):
    """`fudlr debias`, and its verification: results are whole, and of the first process."""
    out = tmp_path / "result"
    together(2, command, "debias", run_folder, "--out", out, "--force", folder=tmp_path)
    names = {path.name for path in out.iterdir()}
    assert {"adapter", "mask.parquet", "summary.json", "report.html"} <= names
    assert load_file(out / "adapter" / "adapter_model.safetensors")
    together(2, command, "verify", out, "--lds", 0, folder=tmp_path)
    assert (out / "retrained").is_dir()
    assert not [path for path in tmp_path.rglob(".*") if ".fudlr" not in path.name]
