"""A loss that is a mean of T terms: the closed form with its curvature counted T times, and once.

    python benchmarks/terms.py [--out out/terms] [--seeds 0 1 2]

A small recommender of titles, whose loss is the mean over a title's tokens, tuned on synthetic data
for thirty epochs. It is retrained without 10% of its samples: drawn, those with the most popular
targets, and those that the influence on ARP chooses. The closed form's shift and its changes of the
surrogate and the validation loss are compared with retraining's, with empirical Fisher's rows
counted T times (as the product does) and once. Along the retrained shift the Gauss-Newton's
curvature is compared with both. Runs and retrainings are kept in --out and not made again. Writes
benchmarks/results/terms.json.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from early_stop import METRICS, SHARE, compared, measured
from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.influence.curvature import GGN, EmpiricalFisher
from fudlr.influence.mask import threshold_mask
from fudlr.pipeline.evidence import gather, solvers, terms_of
from fudlr.pipeline.job import prepare, with_options
from fudlr.pipeline.request import influences
from fudlr.run import Run, load_run, train_run
from fudlr.verify import random_removals, removal, retrain
from machine import describe

RESULT = Path(__file__).parent / "results" / "terms.json"
COMMON = {
    "data.source": "synthetic", "recommender.kind": "titles",
    "data.k": 5, "data.window": 4, "data.max_train_per_user": 2,
    "model.hidden": 32, "model.heads": 2, "model.kv_heads": 1, "model.intermediate": 48,
    "model.vocabulary": 400, "model.pretrain_epochs": 6, "model.pretrain_learning_rate": 0.01,
    "lora.rank": 2, "train.epochs": 30, "train.batch": 64, "train.through": "engine",
}  # fmt: skip
TEMPLATE = "prompt: 'Seen: {history}. Next: '\n"


def trained(seed: int, folder: Path) -> Run:
    """The run of a seed, made where there is none."""
    if not (folder / "run").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        template = folder / "template.yaml"
        template.write_text(TEMPLATE, encoding="utf-8")
        own = {"recommender.template": str(template), "seed": seed}
        train_run(merge(RunConfig(), {**COMMON, **own}), folder / "run")
    return load_run(folder / "run")


def bends(run: Run, job, rows, shift: torch.Tensor) -> dict[str, float]:
    """Curvature along a shift [d], over its square: Gauss-Newton's, and both of Fisher's."""
    run.engine.load(run.theta)
    terms = terms_of(job, run.split.train)
    found = {
        "ggn": GGN(*job.face, job.batches(samples=run.split.train)),
        "counted": EmpiricalFisher(rows, terms),
        "once": EmpiricalFisher(rows),
    }
    return {
        name: float(each.product(shift[None])[0] @ shift / shift.square().sum())
        for name, each in found.items()
    }


def masks_of(run: Run, influence: torch.Tensor) -> dict[str, torch.Tensor]:
    """The removals [n] by name; `influence` [n] is on ARP."""
    (drawn,) = random_removals(len(run.split.train), 1, SHARE, run.config.seed)
    popularity = torch.from_numpy(run.split.popularity[run.split.train.target].copy())
    return {
        "drawn": drawn,
        "most popular targets": threshold_mask(-popularity.float() - 1, SHARE).remove,
        "chosen": threshold_mask(influence, SHARE).remove,
    }


def of_run(run: Run, folder: Path) -> dict:
    """Both ways over all removals of one run."""
    options = {"objective": "arp", "also": METRICS[1:], "rows": "memory", "max_steps": 100}
    job = prepare(run, with_options(run.config.debias, options), StageClock())
    run.engine.load(run.theta)
    rows, gradients = gather(job), job.gradients(job.valid)
    plain = replace(rows, space=replace(rows.space, terms=None))
    found = {"counted": solvers(job, rows), "once": solvers(job, plain)}
    chosen = influences(rows.space, gradients, found["counted"].solve).of("arp")
    masks = masks_of(run, chosen)
    jobs = [removal(f"without {name}", mask) for name, mask in masks.items()]
    done = retrain(run, jobs, folder, description="retrain")
    before, changes = measured(run, job)
    removals = {}
    for (name, mask), truth in zip(masks.items(), done, strict=True):
        ways, went = {}, truth.theta - run.theta
        bent = bends(run, job, rows.space.rows, went)
        for way, evidence in found.items():
            run.engine.load(run.theta)
            update = evidence.remove(mask)
            ways[way] = {**compared(update.delta, went), "changes": changes(update.theta)}
        removals[name] = {"retrained": changes(truth.theta), "curvature": bent, "ways": ways}
        print(name, removals[name], flush=True)
    return {
        "samples": len(run.split.train),
        "parameters": run.engine.d,
        "terms": float(run.recommender.terms(run.split.train).mean()),
        "losses": run.losses,
        "slope_left": found["once"].about["slope_left"],
        "damping": found["once"].damping,
        "before": before,
        "removals": removals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/terms"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    record: dict = {
        "command": f"python benchmarks/terms.py --seeds {' '.join(map(str, given.seeds))}",
        "share": SHARE,
        "machine": describe(),
        "seeds": {},
    }
    for seed in given.seeds:
        folder = given.out / f"titles-{seed}"
        record["seeds"][str(seed)] = of_run(trained(seed, folder), folder / "retrainings")
        write_json(RESULT, record)


if __name__ == "__main__":
    main()
