"""The unrolled update from sketches: faithful to real retraining at which size and cost.

    python benchmarks/unrolled.py [--out out/unrolled] [--trainings brief demo] [--seeds 0]

Two trainings of the demo's model: *brief*, 1,024 samples in 192 steps, as language models are
tuned; and *demo*, the demo's own of 300 steps. Each is trained through peft and through the engine
without recording, and through the engine with each setting of the recording (all the same adapter
to rounding; figures are of the engine's). For ARP and for Hellinger, with λ_acc = 1 and a budget of
10%, the samples that the first setting chooses are taken out by each setting's unrolled update, by
the closed form from its last epoch, and by a real retraining. Changes are of the steered surrogate
on test prompts. Runs and retrainings are kept in --out. Writes benchmarks/results/unrolled.json.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from fudlr import RunConfig
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.evaluation import measure
from fudlr.gradients.recording import recording
from fudlr.gradients.store import Store
from fudlr.influence.mask import threshold_mask
from fudlr.metrics import Objective
from fudlr.pipeline.plan import prepare, with_options
from fudlr.pipeline.request import solve
from fudlr.run import Run, load_run, train_run
from fudlr.train.adapter import train_adapter
from fudlr.verify import removal, retrain

TRAININGS = {
    "brief": {"data.train_samples": 1024, "train.epochs": 3, "train.batch": 16,
              "train.learning_rate": 1e-3},
    "demo": {},
}  # fmt: skip
SETTINGS = {
    "energy .9, bfloat16": {"energy": 0.9},
    "energy .9, int8": {"energy": 0.9, "dtype": "int8"},
    "energy .8, bfloat16": {"energy": 0.8},
    "energy .8, int8": {"energy": 0.8, "dtype": "int8"},
    "energy .7, bfloat16": {"energy": 0.7},
}
OBJECTIVES = {"arp": "arp_soft", "hellinger": "hellinger_soft"}
SHARE = 0.1


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def train(run: Run, through: str, settings: dict[str, Any] | None, folder: Path) -> float:
    """CPU seconds of the training, recorded into `folder`/store where there are settings."""
    record = run.config.record.model_copy(update=settings or {"epochs": "none"})
    options = run.config.train.model_copy(update={"through": through})
    config = run.config.model_copy(update={"record": record, "train": options})
    face = (run.recommender, run.engine, run.split.train)
    run.engine.load(run.start)
    clock = StageClock(announce=False)

    def work() -> None:
        with recording(*face, config=config, run=folder, clock=clock) as recorder:
            train_adapter(*face, options, run.start, recorder=recorder)

    return cpu(work)[0]


def request(run: Run, store: Path | None, **options: Any) -> dict[str, Any]:
    """One request for both objectives: scores, evidence, and its CPU seconds by stage."""
    clock = StageClock(announce=False)
    asked = {"objective": "arp", "also": ("hellinger",), "lambda_acc": 1.0, **options}
    asked |= {} if store is None else {"store": str(store)}
    plan = prepare(run, with_options(run.config.debias, asked), clock)
    found = solve(plan)
    scores = {name: found.scored(objective=Objective.parse(name)).score for name in OBJECTIVES}
    stages = {name: s for name, s in clock.cpu_seconds.items() if name != "prepare"}
    return {"solved": found, "scores": scores, "stages": stages}


def figures(run: Run, solved: Any, theta: torch.Tensor) -> dict[str, float]:
    run.engine.load(theta)
    found = measure(run.recommender, solved.plan.valid, solved.plan.test).metrics
    return {name: found[name] for name in (*OBJECTIVES.values(), "test_loss")}


def ranks(values: torch.Tensor) -> torch.Tensor:
    return values.argsort().argsort().double()


def of_training(run: Run, folder: Path) -> dict[str, Any]:
    seconds = {way: train(run, way, None, folder) for way in ("engine", "peft")}
    run.engine.load(run.theta)
    whole = 4 * run.engine.d * len(run.split.train) * run.config.train.epochs
    found: dict[str, Any] = {}
    asked: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        recorded = train(run, "engine", settings, place)
        run.engine.load(run.theta)
        asked[name] = request(run, place / "store", update="unrolled")
        store = Store.open(place / "store")
        found[name] = {
            "recorded_cpu_s": recorded,
            "recorded_of_peft": recorded / seconds["peft"],
            "bytes_of_float32": store.bytes / whole,
            "numbers_of_d": store.dim / run.engine.d,
            "projections": len(store.manifest.segments),
            "audit": store.audit,
            "request_cpu_s": asked[name]["stages"],
        }
        print(name, found[name], file=sys.stderr, flush=True)
    first = asked[next(iter(SETTINGS))]
    masks = {name: threshold_mask(s, SHARE).remove for name, s in first["scores"].items()}
    jobs = [removal(f"without {name}", mask) for name, mask in masks.items()]
    retrained = retrain(run, jobs, folder / "retrainings", description="retrain")
    before = figures(run, first["solved"], run.theta)
    removals: dict[str, Any] = {}
    for (name, mask), truth in zip(masks.items(), retrained, strict=True):
        key = OBJECTIVES[name]
        real = figures(run, first["solved"], truth.theta)[key] - before[key]
        removals[name] = {"before": before[key], "retrained": real}
        for setting, each in asked.items():
            ways = {"unrolled": each["solved"].evidence.remove}
            if setting == next(iter(SETTINGS)):
                place = str(folder / setting / "store")
                ways["closed form"] = request(run, Path(place), rows="store")["solved"]
                ways["closed form"] = ways["closed form"].evidence.remove
            for way, remove in ways.items():
                spent, update = cpu(partial(remove, mask))
                shift, real_shift = update.delta, truth.theta - run.theta
                label = setting if way == "unrolled" else way
                removals[name][label] = {
                    "change_of_retraining": (
                        figures(run, first["solved"], update.theta)[key] - before[key]
                    )
                    / real,
                    "cosine": float(torch.cosine_similarity(shift, real_shift, dim=0)),
                    "update_cpu_s": spent,
                    "scores_spearman_with_first": float(
                        torch.corrcoef(
                            torch.stack([ranks(each["scores"][name]), ranks(first["scores"][name])])
                        )[0, 1]
                    ),
                }
        print(name, removals[name], file=sys.stderr, flush=True)
    return {
        "samples": len(run.split.train),
        "parameters": run.engine.d,
        "steps": run.store(folder / next(iter(SETTINGS)) / "store").steps,
        "training_cpu_s": seconds,
        "settings": found,
        "removals": removals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/unrolled"))
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    fetch_ml100k()
    found: dict[str, Any] = {}
    for name in given.trainings:
        for seed in given.seeds:
            folder = given.out / f"{name}-{seed}"
            if not (folder / "run").is_dir():
                options = {"train.through": "engine", "record.epochs": "none"}
                train_run(
                    merge(RunConfig(), {**options, **TRAININGS[name], "seed": seed}),
                    folder / "run",
                )
            made = of_training(load_run(folder / "run"), folder)
            found.setdefault(name, {})[str(seed)] = made
            command = "python benchmarks/unrolled.py --trainings " + " ".join(found)
            command += f" --seeds {' '.join(map(str, given.seeds))}"
            write_result(RESULTS / "unrolled.json", command, share=SHARE, trainings=found)


if __name__ == "__main__":
    main()
