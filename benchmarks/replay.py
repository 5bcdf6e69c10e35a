"""The unrolled update beside the closed form, against real retraining.

    python benchmarks/replay.py [--out out/replay] [--trainings brief demo] [--seeds 0 1 2]

Two trainings of the demo's model: *brief*, 1,024 samples in 192 steps, as language models are
tuned; and *demo*, the demo's own of 300 steps, for the first seed. Each keeps its batches' rows
(record.trajectory) and is retrained without 10% of its samples: drawn twice, those with the most
popular targets, and those that the influence of each way on ARP chooses. The ways: the closed form
from whole gradients, and the unrolled training (debias.update unrolled). The shifts are compared
with the retrained one's, and the changes of ARP, of its surrogate and of the loss on the validation
prompts with the actual ones. Some ten minutes on two cores; runs and retrainings are kept in --out
and not made again. Writes benchmarks/results/replay.json.
"""

import argparse
import time
from pathlib import Path

import torch
from common import describe
from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.evaluation import measure
from fudlr.influence.mask import threshold_mask
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.plan import prepare, with_options
from fudlr.pipeline.request import influences
from fudlr.run import Run, load_run, train_run
from fudlr.verify import random_removals, removal, retrain

RESULT = Path(__file__).parent / "results" / "replay.json"
KEPT = {"train.through": "engine", "record.trajectory": "float32"}
TRAININGS = {
    "brief": {"data.train_samples": 1024, "train.epochs": 3, "train.batch": 16,
              "train.learning_rate": 1e-3},
    "demo": {},
}  # fmt: skip
WAYS = {
    "identity": {"rows": "memory"},  # the closed form; by the names of the recorded results
    "replay": {"update": "unrolled"},
}
SHARE = 0.1
METRICS = ("arp", "arp_soft", "aplt_soft", "val_loss")


def masks_of(run: Run, chosen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The removals [n] by name; `chosen` are influences on ARP."""
    n = len(run.split.train)
    drawn = random_removals(n, 2, SHARE, run.config.seed)
    masks = {f"drawn {i + 1}": mask for i, mask in enumerate(drawn)}
    popularity = torch.from_numpy(run.split.popularity[run.split.train.target].copy())
    masks["most popular targets"] = threshold_mask(-popularity.float() - 1, SHARE).remove
    for name, values in chosen.items():
        masks[f"chosen, {name}"] = threshold_mask(values, SHARE).remove
    return masks


def compared(shift: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """How alike two shifts [d] are, their lengths, and the second's part of the first's way."""
    shift, truth = shift.double(), truth.double()
    return {
        "length": float(shift.norm()),
        "retrained_length": float(truth.norm()),
        "cosine": float(torch.cosine_similarity(shift, truth, dim=0)),
        "along": float(shift @ truth / shift.square().sum()),
    }


def figures(run: Run, plan, theta: torch.Tensor) -> dict[str, float]:
    """`METRICS` of the adapter `theta` [d] on the validation prompts."""
    run.engine.load(theta)
    found = measure(run.recommender, plan.valid, plan.valid, plan.config.batch)
    return {name: found.metrics[name] for name in METRICS}


def of_training(run: Run, folder: Path) -> dict:
    """All ways over all removals of one training."""
    found, scores, seconds, gradients = {}, {}, {}, None
    for name, options in WAYS.items():
        asked = {"objective": "arp", "lambda_acc": 0.0, **options}
        plan = prepare(run, with_options(run.config.debias, asked))
        run.engine.load(run.theta)
        gradients = gradients or plan.gradients(plan.valid)
        begun = time.process_time()
        found[name] = solvers(plan, gather(plan))
        scores[name] = influences(found[name].space, gradients, found[name].solve).of("arp")
        seconds[name] = {"scores": time.process_time() - begun}
    masks = masks_of(run, scores)
    jobs = [removal(f"without {name}", mask) for name, mask in masks.items()]
    done = retrain(run, jobs, folder, description="retrain")
    before = figures(run, plan, run.theta)

    def changes(theta: torch.Tensor) -> dict[str, float]:
        after = figures(run, plan, theta)
        return {name: after[name] - before[name] for name in METRICS}

    removals = {}
    for (name, mask), truth in zip(masks.items(), done, strict=True):
        ways = {}
        for way, evidence in found.items():
            run.engine.load(run.theta)
            begun = time.process_time()
            update = evidence.remove(mask)
            seconds[way]["update"] = time.process_time() - begun
            shift = compared(update.delta, truth.theta - run.theta)
            ways[way] = {**shift, "changes": changes(update.theta)}
        removals[name] = {"retrained": changes(truth.theta), "ways": ways}
        print(name, removals[name], flush=True)
    return {
        "samples": len(run.split.train),
        "parameters": run.engine.d,
        "epochs": run.config.train.epochs,
        "losses": run.losses,
        "before": before,
        "removals": removals,
        "cpu_seconds": {**seconds, "retraining": done[0].cpu_seconds},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/replay"))
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    fetch_ml100k()
    seeds = " ".join(map(str, given.seeds))
    record: dict = {
        "command": f"python benchmarks/replay.py --trainings {' '.join(given.trainings)} "
        f"--seeds {seeds}",
        "share": SHARE,
        "machine": describe(),
        "trainings": {},
    }
    for name in given.trainings:
        for seed in given.seeds if name == "brief" else given.seeds[:1]:
            folder = given.out / f"{name}-{seed}"
            if not (folder / "run").is_dir():
                options = {**KEPT, **TRAININGS[name], "seed": seed}
                train_run(merge(RunConfig(), options), folder / "run")
            found = of_training(load_run(folder / "run"), folder / "retrainings")
            record["trainings"].setdefault(name, {})[str(seed)] = found
            write_json(RESULT, record)


if __name__ == "__main__":
    main()
