"""Every curvature on the demo: what it does to popularity and accuracy, and what it warns of.

    python benchmarks/curvatures.py [--seed 0] [--out out/curvatures] [--small]

Trains the demo's run once (kept in --out), debiases it for popularity with each curvature of the
table and defaults otherwise, and retrains without each one's samples. Writes
benchmarks/results/curvatures.json after every curvature: relative changes of ARP and NDCG@10, the
share of retraining's change, the calibration, warnings, and seconds; refusals with their words.
--small checks that all parts work, on a fraction of the samples, and writes into --out.
"""

import argparse
import time
from pathlib import Path

from fudlr import RunConfig
from fudlr.common.errors import FudlrError
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.debias import debias
from fudlr.demo import SMALL
from fudlr.evaluation import measure
from fudlr.influence.curvature import CURVATURES
from fudlr.run import load_run, train_run
from fudlr.train.adapter import train_adapter
from machine import describe

RESULTS = Path(__file__).parent / "results"
STREAMED = ("true_fisher", "ggn", "hessian")
"""Curvatures whose products go through the model; measured last, since they take longest."""


def of_curvature(folder: Path, name: str) -> dict:
    """One curvature's row."""
    run = load_run(folder)
    start = time.perf_counter()
    try:
        found = debias(run, objective="arp", curvature=name, rows="memory", curve=(), heldout=False)
    except FudlrError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - start
    weights = 1 - found.mask.float()
    training = run.config.train
    train_adapter(
        run.recommender, run.engine, run.split.train, training, run.start, weights=weights
    )
    again = measure(run.recommender, found.valid, found.test).metrics
    before, after = found.before.metrics, found.after.metrics
    moved, real = (figures["arp"] - before["arp"] for figures in (after, again))
    return {
        "removed": found.summary["samples"]["removed"],
        "change": {m: after[m] / before[m] - 1 for m in ("arp", "ndcg@10", "val_loss")},
        "retrained": {m: again[m] / before[m] - 1 for m in ("arp", "ndcg@10", "val_loss")},
        "closed_form_over_retraining": moved / real,
        "calibration": found.summary["update"].get("calibration"),
        "relative_shift": found.summary["solver"]["relative_shift"],
        "damping": found.summary["solver"]["damping"],
        "signatures": {s["name"]: s["severity"] for s in found.summary["signatures"]},
        "warnings": found.summary["warnings"],
        "seconds": seconds,
        "stages": found.summary["seconds"],
    }


def main() -> None:
    """Train once, then one row a curvature."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/curvatures"))
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    base = merge(RunConfig(), SMALL if arguments.small else {})
    target = arguments.out if arguments.small else RESULTS
    folder = arguments.out / f"run-{arguments.seed}"
    if not folder.is_dir():
        train_run(merge(base, {"seed": arguments.seed}), folder)
    rows: dict[str, dict] = {}
    for name in sorted(CURVATURES, key=lambda name: name in STREAMED):
        rows[name] = of_curvature(folder, name)
        print(name, rows[name].get("change") or rows[name], flush=True)
        write_json(
            target / "curvatures.json",
            {
                "command": f"python benchmarks/curvatures.py --seed {arguments.seed}",
                "machine": describe(),
                "objective": "arp",
                "budget": 0.1,
                "curvatures": rows,
            },
        )


if __name__ == "__main__":
    main()
