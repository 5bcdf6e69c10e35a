"""Influence on fairness beside bergson's MAGIC, EK-FAC and TRAK: rank agreement with retraining.

    python benchmarks/attribution.py [--seed 0] [--out out/attribution] [--methods NAME ...]

One training of the demo (Adam, 300 steps, every sample's weight 1). 30 random removals of 10% of
the samples and 10 targeted ones are really retrained. Every method gives each sample's influence on
the surrogates of ARP and Hellinger on the validation prompts; the sum over the removed predicts a
removal, and Spearman's correlation with what retraining did is the linear datamodeling score.
Targeted removals are chosen by the closed form: of a random half of the samples the strongest, up
and down in turns.

Each method runs in a process of its own, which measures its CPU time, its peak memory and the bytes
that it keeps on disk beside the model. What is recorded while training counts by the CPU time that
it adds. Metric gradients are the same for all and are left out. bergson's MAGIC trains the same
model in the same order by its own functional Adam, with its `eps_root`, and goes back through that
training; its EK-FAC and TRAK see the trained adapter alone. Needs what
benchmarks/rivals/requirements.txt names. Writes benchmarks/results/attribution.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from fudlr import RunConfig
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.gradients.store import Store
from fudlr.pipeline.request import solve
from fudlr.run import Run, load_run, train_run
from fudlr.verify import random_removals, targeted_removals
from safetensors.torch import load_file, save_file
from torch import Tensor
from trainings import OBJECTIVES, SETTINGS, SHARE, plan_for, removed, spearman, train, unrolled

RECORDED: dict[str, dict[str, Any]] = {"sketches": {}, "whole rows": SETTINGS["whole rows"]}


def from_store(run: Run, folder: Path, recorded: str) -> tuple[Tensor, Path]:
    """Unrolled from the steps of a store; `[n, 2]`, and where it is."""
    store = folder / recorded / "store"
    return unrolled(run, Store.open(store)).influence(cotangents(folder)), store


def closed_form(run: Run, folder: Path) -> tuple[Tensor, Path]:
    """From the last epoch of the store of sketches."""
    store = folder / "sketches" / "store"
    found = solve(plan_for(run, store, "arp", also=("hellinger",), rows="store"))
    return torch.stack([found.influence.of(name) for name in OBJECTIVES], 1), store


def by_bergson(name: str, run: Run, folder: Path) -> tuple[Tensor, Path]:
    """One of rivals/bergson_attribution.py, which imports bergson."""
    rival = importlib.import_module("rivals.bergson_attribution")
    found: tuple[Tensor, Path] = getattr(rival, name)(run, cotangents(folder), folder / name)
    return found


METHODS = {
    "closed form": closed_form,
    "unrolled, sketches": lambda run, folder: from_store(run, folder, "sketches"),
    "unrolled, whole rows": lambda run, folder: from_store(run, folder, "whole rows"),
    "bergson MAGIC": lambda run, folder: by_bergson("magic", run, folder),
    "bergson EK-FAC": lambda run, folder: by_bergson("ekfac", run, folder),
    "bergson TRAK": lambda run, folder: by_bergson("trak", run, folder),
}


def cotangents(folder: Path) -> Tensor:
    """∇F of both surrogates at θ*, `[2, d]`."""
    return load_file(folder / "gradients.safetensors")["gradients"]


def alone(run: Run, folder: Path, name: str) -> None:
    """One method in this process; its influence and its cost are left in `folder`."""
    torch.set_num_threads(1)
    start = time.process_time()
    influence, kept = METHODS[name](run, folder)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cost = {
        "cpu_s": time.process_time() - start + usage[1].ru_utime + usage[1].ru_stime,
        "peak_mib": max(each.ru_maxrss for each in usage) / 1024,
        "disk_mib": sum(f.stat().st_size for f in kept.rglob("*") if f.is_file()) / 2**20,
    }
    save_file({"influence": influence.contiguous()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(cost))


def prepare(folder: Path, seed: int) -> tuple[Run, dict[str, float]]:
    """The training, its recordings, metric gradients; and what each recording adds in CPU time."""
    torch.set_num_threads(1)
    if not (folder / "run").is_dir():
        options = {"train.through": "engine", "record.epochs": "none", "seed": seed}
        train_run(merge(RunConfig(), options), folder / "run")
    run = load_run(folder / "run")
    if not (folder / "recorded.json").is_file():
        plain = train(run, "engine", None, folder)
        added = {
            name: train(run, "engine", settings, folder / name) - plain
            for name, settings in RECORDED.items()
        }
        plan = plan_for(run, folder / "sketches" / "store", "arp", also=("hellinger",))
        gradients = plan.gradients(plan.valid)
        stacked = torch.stack([gradients[name].gradient for name in OBJECTIVES])
        save_file({"gradients": stacked}, folder / "gradients.safetensors")
        added["peft"] = train(run, "peft", None, folder)
        (folder / "recorded.json").write_text(json.dumps(added))
    return run, json.loads((folder / "recorded.json").read_text())


def retrained(run: Run, folder: Path, counts: dict[str, int]) -> tuple[dict[str, list], Tensor]:
    """Masks by kind, and what each removal really changed, `[removals, 2]`."""
    n, seed = len(run.split.train), run.config.seed
    chosen = load_file(folder / "closed form.safetensors")["influence"]
    plan = plan_for(run, folder / "sketches" / "store", "arp")
    half = counts["targeted"] // 2
    masks = {
        "random": random_removals(n, counts["random"], SHARE, seed),
        "targeted": [
            mask
            for k in range(len(OBJECTIVES))
            for mask in targeted_removals(chosen[:, k], half, SHARE, seed + k)
        ],
    }
    named = {f"{kind} {i}": mask for kind, each in masks.items() for i, mask in enumerate(each)}
    return masks, removed(run, plan, named, folder)


def agreement(influence: Tensor, masks: dict[str, list], actual: Tensor) -> dict[str, Any]:
    """Spearman's correlation of predicted and actual changes, by the kind of removal."""
    every = torch.stack([mask for each in masks.values() for mask in each])
    predicted = every.double() @ influence.double()
    count = len(masks["random"])
    parts = {"random": slice(0, count), "targeted": slice(count, None), "all": slice(None)}
    return {
        kind: {
            name: spearman(predicted[part, k], actual[part, k].double())
            for k, name in enumerate(OBJECTIVES)
        }
        for kind, part in parts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/attribution"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--removals", nargs=2, type=int, default=[30, 10])
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    fetch_ml100k()
    folder = given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    run, added = prepare(folder, given.seed)
    if given.only:
        alone(run, folder, given.only)
        return
    names = list(dict.fromkeys(["closed form", *given.methods]))  # removals are chosen by the first
    for name in names:
        if not (folder / f"{name}.safetensors").is_file():
            command = [sys.executable, __file__, "--out", str(folder), "--only", name]
            subprocess.run(command, check=True, env={**os.environ, "TMPDIR": tempfile.gettempdir()})
    counts = dict(zip(("random", "targeted"), given.removals, strict=True))
    masks, actual = retrained(run, folder, counts)
    found = {}
    for name in names:
        cost = json.loads((folder / f"{name}.json").read_text())
        recording = next((a for kind, a in added.items() if name.endswith(kind)), 0.0)
        recording = added["sketches"] if name == "closed form" else recording
        influence = load_file(folder / f"{name}.safetensors")["influence"]
        found[name] = {
            **cost,
            "recording_cpu_s": recording,
            "spearman": agreement(influence, masks, actual),
        }
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    write_result(
        RESULTS / "attribution.json",
        f"python benchmarks/attribution.py --seed {given.seed}",
        samples=len(run.split.train),
        parameters=run.engine.d,
        removals=counts,
        peft_training_cpu_s=added["peft"],
        methods=found,
    )


if __name__ == "__main__":
    main()
