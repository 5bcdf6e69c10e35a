"""Update rules on the demo against real retraining, and what each costs.

    python benchmarks/closer.py [--seeds 0 1 2] [--out out/closer] [--small]

For each seed and objective: the mask at defaults from whole gradients, one retraining without it,
and every rule's update with the same mask. Runs and retrained adapters are kept in --out. Writes
benchmarks/results/closer.json: the share of retraining's change that each rule reaches, for each
seed and for the mean of the seeds, the change of NDCG@10 and the seconds of the update. --small
checks that all parts work, on a fraction of the samples, and writes into --out.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch
from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.debias import debias
from fudlr.demo import SMALL
from fudlr.evaluation import measure
from fudlr.run import Run, load_run, train_run
from fudlr.train.adapter import train_adapter
from machine import describe
from safetensors.torch import load_file, save_file

RESULTS = Path(__file__).parent / "results"
RULES: dict[str, dict] = {
    "one_step": {},
    "kept_curvature": {"update": "kept_curvature"},
    "newton, 1 step": {"update": "newton", "newton_steps": 1},
    "newton, 2 steps": {"update": "newton", "newton_steps": 2},
    "newton, 2 steps on a quarter": {"update": "newton", "newton_steps": 2, "newton_share": 0.25},
    "one_step, slope descended": {"slope": "descend"},
}


def retrained(run: Run, mask: torch.Tensor, path: Path) -> torch.Tensor:
    """The adapter trained without the masked samples [d]; from `path` where it is of this mask."""
    if path.is_file():
        kept = load_file(path)
        if torch.equal(kept["mask"], mask):
            return kept["theta"]
    weights = 1 - mask.float()
    training = train_adapter(
        run.recommender, run.engine, run.split.train, run.config.train, run.start, weights=weights
    )
    save_file({"mask": mask, "theta": training.theta}, path)
    return training.theta


def of_seed(folder: Path, objective: str, path: Path) -> dict:
    """Before, retrained and each rule's figures."""
    found: dict = {}
    for name, options in RULES.items():
        run = load_run(folder)
        result = debias(
            run, objective=objective, rows="memory", force=True, curve=(), heldout=False, **options
        )
        if not found:
            run.engine.load(retrained(run, result.mask, path))
            again = measure(run.recommender, result.valid, result.test).metrics
            found = {"before": result.before.metrics, "retrained": again, "rules": {}}
            found["training_seconds"] = run.train_seconds
        found["rules"][name] = {
            "after": result.after.metrics,
            "update_seconds": result.summary["seconds"]["update"],
            "relative_shift": result.summary["solver"]["relative_shift"],
            "warnings": result.summary["warnings"],
        }
        print(folder.name, objective, name, result.after.metrics[objective], flush=True)
    return found


def summarise(objective: str, seeds: list[dict]) -> dict:
    """Each rule's share of retraining's change, by seed and for the mean of the seeds."""

    def changes(pick):
        return [pick(s)[objective] - s["before"][objective] for s in seeds]

    real = changes(lambda s: s["retrained"])
    table = {}
    for name in RULES:
        moved = changes(lambda s, name=name: s["rules"][name]["after"])
        table[name] = {
            "share_of_retraining": [m / r for m, r in zip(moved, real, strict=True)],
            "share_of_retraining_mean": sum(moved) / sum(real),
            "ndcg@10": mean(s["rules"][name]["after"]["ndcg@10"] / s["before"]["ndcg@10"] - 1
                            for s in seeds),
            "update_seconds": mean(s["rules"][name]["update_seconds"] for s in seeds),
        }  # fmt: skip
    return {
        "rules": table,
        "retrained_ndcg@10": mean(
            s["retrained"]["ndcg@10"] / s["before"]["ndcg@10"] - 1 for s in seeds
        ),
        "training_seconds": mean(s["training_seconds"] for s in seeds),
        "seeds": seeds,
    }


def main() -> None:
    """Run what is missing, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/closer"))
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    base = merge(RunConfig(), SMALL if arguments.small else {})
    target = arguments.out if arguments.small else RESULTS
    results: dict[str, list[dict]] = {"arp": [], "hellinger": []}
    for seed in arguments.seeds:
        folder = arguments.out / f"run-{seed}"
        if not folder.is_dir():
            train_run(merge(base, {"seed": seed}), folder)
        for objective, seeds in results.items():
            path = arguments.out / f"{objective}-{seed}.safetensors"
            seeds.append(of_seed(folder, objective, path))
    write_json(
        target / "closer.json",
        {
            "command": "python benchmarks/closer.py --seeds " + " ".join(map(str, arguments.seeds)),
            "machine": describe(),
            "results": {name: summarise(name, seeds) for name, seeds in results.items()},
        },
    )


if __name__ == "__main__":
    main()
