"""What candidates save and what they cost in effect: every strategy and share, against all samples.

    python benchmarks/candidates.py [--seeds 0] [--shares 0.05 0.1 0.2] [--out out/candidates]

The demo's model and data, popularity steered down, budget 10%, λ_acc 0 and 1. Runs and rows already
in --out are kept. Costs are CPU seconds of the candidates' gradients (with the choosing, which is a
forward pass for `loss`), as a share of the training's: one epoch trained here, times the run's
epochs. Writes benchmarks/results/candidates.json.
"""

import argparse
import json
import time
from pathlib import Path

from fudlr import RunConfig, load_run, train_run
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.influence.candidates import STRATEGIES
from fudlr.metrics import METRICS
from fudlr.sweep import Grid, sweep_run
from fudlr.train.adapter import train_adapter
from machine import describe

RESULT = Path(__file__).parent / "results" / "candidates.json"
SHARES = (0.05, 0.1, 0.2)
BUDGET = 0.1
LAMBDAS = (0.0, 1.0)


def training_seconds(run) -> float:
    """CPU seconds of the run's training, from one epoch."""
    config = run.config.train.model_copy(update={"epochs": 1})
    before = time.process_time()
    train_adapter(run.recommender, run.engine, run.split.train, config, run.start)
    seconds = time.process_time() - before
    run.engine.load(run.theta)
    return seconds * run.config.train.epochs


def swept(run, strategy: str, share: float) -> dict:
    """Cost, and the figures for each λ_acc."""
    options = {"rows": "memory", "candidates": strategy, "candidate_share": share}
    config = merge(run.config, {f"debias.{k}": v for k, v in options.items()}).debias
    found = sweep_run(run, Grid(lambda_acc=LAMBDAS, budget=(BUDGET,)), config, measure=True)
    metric, k = METRICS["arp"], run.config.data.k
    before = found["before"]["test"]
    rows = {}
    for point in found["points"]:
        after = point["measured"]["test"]
        rows[f"{point['lambda_acc']:g}"] = {
            "removed": point["removed"],
            "loss_rise": point["measured"]["loss_rise"],
            **{
                name: after[key] / before[key] - 1
                for name, key in (("arp", metric.soft_key), ("arp@k", metric.hard_key(k)))
            },
        }
    seconds = found["cpu_seconds"]
    return {"gradients": seconds["sample gradients"], "stages": seconds, "lambda_acc": rows}


def of_seed(seed: int, shares: list[float], out: Path) -> dict:
    """Every strategy and share on one run."""
    folder = out / f"run-{seed}"
    if not (folder / "train.json").is_file():
        train_run(merge(RunConfig(), {"seed": seed}), folder)
    run = load_run(folder)
    training = training_seconds(run)
    asked = [("all", 1.0), *((name, share) for share in shares for name in STRATEGIES)]
    rows = []
    for strategy, share in asked:
        kept = out / f"rows-{seed}" / f"{strategy}-{share}.json"
        if not kept.is_file():
            write_json(kept, {"strategy": strategy, "share": share, **swept(run, strategy, share)})
        rows.append(json.loads(kept.read_text(encoding="utf-8")))
    whole = rows[0]
    for row in rows:
        row["of_training"] = row["gradients"] / training
        for name, found in row["lambda_acc"].items():
            full = whole["lambda_acc"][name]
            found["of_all"] = {key: found[key] / full[key] for key in ("arp", "arp@k")}
    return {"seed": seed, "training": training, "samples": len(run.split.train), "rows": rows}


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--out", type=Path, default=Path("out/candidates"))
    arguments = parser.parse_args()
    lists = {"seeds": arguments.seeds}
    if arguments.shares != list(SHARES):
        lists["shares"] = arguments.shares
    record = {
        "command": "python benchmarks/candidates.py"
        + "".join(f" --{name} " + " ".join(map(str, given)) for name, given in lists.items()),
        "machine": describe(),
        "budget": BUDGET,
        "runs": [of_seed(seed, arguments.shares, arguments.out) for seed in arguments.seeds],
    }
    write_json(RESULT, record)


if __name__ == "__main__":
    main()
