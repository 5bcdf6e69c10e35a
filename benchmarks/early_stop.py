"""The damping of an early stop in Adam's metric beside one number for all, against retraining.

    python benchmarks/early_stop.py [--out out/early_stop] [--trainings short demo]

Two trainings: *short*, the first two layers of SmolLM2-135M over MovieLens-100k with the real run's
options (`make llm`: 1,024 samples, 192 steps) and 48 users; and *demo*, the demo's own, of 300
steps. Each is retrained without 10% of its samples: drawn twice, those with the most popular
targets, and those that either metric's influence on ARP chooses. For the rule's damping
(debias.metric identity) and for adam, the closed form's shift is compared with the retrained one's,
and the changes of the validation loss and of ARP's surrogate on the validation prompts with the
actual ones. Half an hour and more on two cores; runs and retrainings are kept in --out and not made
again. Writes benchmarks/results/early_stop.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import llm
import smollm
import torch
from common import describe
from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.influence.mask import threshold_mask
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.job import Job, prepare, with_options
from fudlr.pipeline.request import influences
from fudlr.run import Run, load_run, train_run
from fudlr.verify import random_removals, removal, retrain
from fudlr.verify.changes import surrogates

RESULT = Path(__file__).parent / "results" / "early_stop.json"
SHARE, LAYERS, USERS = 0.1, 2, 48
DAMPINGS = ("identity", "adam")
METRICS = ("arp", "val_loss")


def short() -> dict:
    """The real run's options on the model's first layers."""
    base = str(smollm.convert(LAYERS))
    return {**llm.OPTIONS, "model.base": base, "data.prompt_users": USERS}


TRAININGS = {"short": short, "demo": dict}


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


def measured(run: Run, job: Job) -> tuple[dict[str, float], Callable]:
    """`METRICS` of θ* on the validation prompts, and `changes(theta)` from there."""
    before = surrogates(run, job.valid, METRICS, run.theta)

    def changes(theta: torch.Tensor) -> dict[str, float]:
        after = surrogates(run, job.valid, METRICS, theta)
        return {name: after[name] - before[name] for name in METRICS}

    return before, changes


def of_training(run: Run, folder: Path) -> dict:
    """Both dampings over all removals of one training."""
    found, scores, gradients = {}, {}, None
    rows = None
    for name in DAMPINGS:
        options = {"objective": "arp", "also": METRICS[1:], "rows": "memory", "metric": name}
        job = prepare(run, with_options(run.config.debias, options), StageClock())
        run.engine.load(run.theta)
        rows = rows or gather(job)
        gradients = gradients or job.gradients(job.valid)
        found[name] = solvers(job, rows)
        scores[name] = influences(found[name].space, gradients, found[name].solve).of("arp")
    masks = masks_of(run, scores)
    jobs = [removal(f"without {name}", mask) for name, mask in masks.items()]
    done = retrain(run, jobs, folder, description="retrain")
    before, changes = measured(run, job)
    removals = {}
    for (name, mask), truth in zip(masks.items(), done, strict=True):
        ways = {}
        for damping, evidence in found.items():
            run.engine.load(run.theta)
            update = evidence.remove(mask)
            ways[damping] = {
                **compared(update.delta, truth.theta - run.theta),
                "changes": changes(update.theta),
            }
        removals[name] = {"retrained": changes(truth.theta), "ways": ways}
        print(name, removals[name], flush=True)
    about = found["adam"].about
    return {
        "samples": len(run.split.train),
        "parameters": run.engine.d,
        "epochs": run.config.train.epochs,
        "losses": run.losses,
        "slope_left": about["slope_left"],
        "damping": found["identity"].damping,
        "mean_damping": about["mean_damping"],
        "before": before,
        "removals": removals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/early_stop"))
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    given = parser.parse_args()
    fetch_ml100k()
    record: dict = {
        "command": f"python benchmarks/early_stop.py --trainings {' '.join(given.trainings)}",
        "share": SHARE,
        "layers": LAYERS,
        "machine": describe(),
        "trainings": {},
    }
    for name in given.trainings:
        folder = given.out / name
        if not (folder / "run").is_dir():
            train_run(merge(RunConfig(), TRAININGS[name]()), folder / "run")
        record["trainings"][name] = of_training(load_run(folder / "run"), folder / "retrainings")
        write_json(RESULT, record)


if __name__ == "__main__":
    main()
