"""The demo over several seeds: effect on held metrics, agreement with real retraining.

    python benchmarks/loop.py [--seeds 0 1 2] [--out out/loop]

Runs the demo once a seed (seeds already in --out are kept) and writes
benchmarks/results/loop.json: for each objective and figure, before, after and retrained of every
seed, their means, and the bars with what was measured.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from common import describe
from fudlr import RunConfig
from fudlr.cli.demo import OBJECTIVES, run_demo
from fudlr.common.files import write_json
from fudlr.config import merge

RESULTS = Path(__file__).parent / "results"
STATES = ("before", "after", "retrained")


def relative(summary: dict, state: str, metric: str) -> float:
    """Relative change of `metric` from before to `state`."""
    return summary[state][metric] / summary["before"][metric] - 1


def of_objective(summaries: list[dict]) -> dict:
    """Figures of one objective over the seeds."""
    metrics = sorted(set.intersection(*(set(s["before"]) & set(s["retrained"]) for s in summaries)))
    table = {}
    for metric in metrics:
        per_seed = {state: [s[state][metric] for s in summaries] for state in STATES}
        means = {state: mean(values) for state, values in per_seed.items()}
        moved = means["retrained"] - means["before"]
        table[metric] = {
            **per_seed,
            "mean": means,
            "mean_relative_change": mean(relative(s, "after", metric) for s in summaries),
            "mean_relative_change_retrained": mean(
                relative(s, "retrained", metric) for s in summaries
            ),
            "closed_form_over_retraining": (means["after"] - means["before"]) / moved
            if moved
            else None,
        }
    heldout = {
        metric: mean(s["heldout"]["after"][metric] / s["heldout"]["before"][metric] - 1
                     for s in summaries)
        for metric in metrics
    }  # fmt: skip
    return {
        "figures": table,
        "heldout_mean_relative_change": heldout,
        "null": [s["null"] for s in summaries],
        "share_of_training": [s["cost"]["share_of_training"] for s in summaries],
        "seconds": [s["seconds"] for s in summaries],
        "damping": [s["solver"]["damping"] for s in summaries],
        "warnings": [s["warnings"] for s in summaries],
    }


def bars(results: dict) -> list[dict]:
    """Each bar of the loop, what was asked and what was measured."""
    arp, gap = results["arp"]["figures"], results["hellinger"]["figures"]
    rows = [
        ("arp falls by at least 7%", -arp["arp"]["mean_relative_change"], 0.07),
        ("aplt rises by at least 25%", arp["aplt"]["mean_relative_change"], 0.25),
        ("ndcg@10 loses at most 6%", arp["ndcg@10"]["mean_relative_change"], -0.06),
        (
            "test loss not worse",
            arp["test_loss"]["mean"]["before"] - arp["test_loss"]["mean"]["after"],
            0.0,
        ),
        ("hellinger falls by at least 15%", -gap["hellinger"]["mean_relative_change"], 0.15),
        (
            "change of arp within 20% of retraining's",
            -abs(arp["arp"]["closed_form_over_retraining"] - 1),
            -0.2,
        ),
        (
            "change of hellinger beside retraining's (reported)",
            -abs(gap["hellinger"]["closed_form_over_retraining"] - 1),
            -0.2,
        ),
    ]
    return [
        {"bar": name, "measured": value, "threshold": threshold, "met": value >= threshold}
        for name, value, threshold in rows
    ]


def main() -> None:
    """Run, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/loop"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        if not all((folder / name / "retrained").is_dir() for name in OBJECTIVES):
            options = {"seed": seed, "debias.rows": "memory"}
            run_demo(merge(RunConfig(), options), folder)
    results = {
        name: of_objective(
            [
                json.loads((arguments.out / f"seed-{seed}" / name / "summary.json").read_text())
                for seed in arguments.seeds
            ]
        )
        for name in OBJECTIVES
    }
    record = {
        "command": "python benchmarks/loop.py --seeds " + " ".join(map(str, arguments.seeds)),
        "machine": describe(),
        "seeds": arguments.seeds,
        "bars": bars(results),
        "results": results,
    }
    write_json(RESULTS / "loop.json", record)
    for row in record["bars"]:
        print(f"{'met   ' if row['met'] else 'missed'}  {row['bar']}: {row['measured']:.4f}")


if __name__ == "__main__":
    main()
