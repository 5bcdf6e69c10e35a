"""Steering modes on the demo, with their retrained truth beside them.

    python benchmarks/steering.py [--seeds 0] [--out out/lds] [--processes 2] [--small]

For each seed: the plain removal and every mode of `debias.steering` at defaults, for ARP; and real
retraining with sample weights 1 − m for the masks of the removal, soft and signed: three trainings.
Runs and retrainings are those of benchmarks/lds.py where it ran before. Writes
benchmarks/results/steering.json; --small checks that all parts work, and writes into --out.
"""

import argparse
from pathlib import Path

from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.debias import debias
from fudlr.debias.steering import MODES, OWN_MASKS
from fudlr.demo import SMALL
from fudlr.evaluation import measure
from fudlr.run import load_run, train_run
from fudlr.verify import removal, retrain
from machine import describe

RESULTS = Path(__file__).parent / "results"
SHOWN = ("arp", "arp_soft", "aplt", "ndcg@10", "val_loss", "test_loss")


def of_seed(folder: Path, processes: int) -> dict:
    """Relative changes of the removal and every mode, held-out users', and their truths'."""
    found, masks = {}, {}
    for mode in (None, *MODES):
        run = load_run(folder / "run")
        result = debias(run, objective="arp", rows="memory", steering=mode, curve=())
        name = mode or "removal"
        before, held = result.before.metrics, result.summary["heldout"]["after"]
        found[name] = {
            "change": {m: result.after.metrics[m] / before[m] - 1 for m in SHOWN},
            "heldout": {m: held[m] / before[m] - 1 for m in SHOWN},
            "seconds": result.summary["seconds"].get("steering", 0.0),
            "about": result.summary["steering"],
            "warnings": result.summary["warnings"],
        }
        if mode is None or mode in OWN_MASKS:
            masks[name] = result.mask.float()
        print(folder.name, name, found[name]["change"], flush=True)
    jobs = [removal(f"steering: {name}", mask) for name, mask in masks.items()]
    for name, done in zip(
        masks, retrain(run, jobs, folder / "retrainings", processes), strict=True
    ):
        run.engine.load(done.theta)
        again = measure(run.recommender, result.valid, result.test).metrics
        found[name]["retrained"] = {m: again[m] / before[m] - 1 for m in SHOWN}
    for each in found.values():
        each.setdefault("retrained", found["removal"]["retrained"])
    return found


def main() -> None:
    """Steer, retrain, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("out/lds"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    seeds = {}
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        if not (folder / "run").is_dir():
            small = SMALL if arguments.small else {}
            train_run(merge(RunConfig(), {"seed": seed, **small}), folder / "run")
        seeds[str(seed)] = of_seed(folder, arguments.processes)
        write_json(
            (arguments.out if arguments.small else RESULTS) / "steering.json",
            {
                "command": "python benchmarks/steering.py --seeds "
                + " ".join(map(str, arguments.seeds)),
                "machine": describe(),
                "objective": "arp",
                "seeds": seeds,
            },
        )


if __name__ == "__main__":
    main()
