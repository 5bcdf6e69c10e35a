"""Predicted against real retraining over seeds: the linear datamodeling score, and one removal.

    python benchmarks/lds.py [--seeds 0 1 2] [--removals 10] [--targeted 4] [--out out/lds]

For each seed: the demo's training (kept in --out), `debias` for ARP with λ_acc = 1 at a 10% budget,
random removals of 10% really retrained, targeted ones too, and the removal of the mask itself.
Writes benchmarks/results/lds.json. Every retraining is kept: a second call goes on.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from common import describe
from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.debias import debias
from fudlr.run import load_run, train_run
from fudlr.verify import (
    agreement,
    measure_changes,
    random_removals,
    removal,
    retrain,
    targeted_removals,
)
from fudlr.verify.case import Case

RESULTS = Path(__file__).parent / "results"
SHARE = 0.1
METRICS = ("arp", "hellinger", "val_loss")


def measure_seed(seed: int, arguments: argparse.Namespace) -> dict:
    """Predictions and retrainings of one seed."""
    folder = arguments.out / f"seed-{seed}"
    if not (folder / "run").is_dir():
        train_run(merge(RunConfig(), {"seed": seed}), folder / "run")
    run, kept = load_run(folder / "run"), folder / "retrainings"
    result = debias(run, objective="arp", also=("hellinger",))
    influence = {name: result.answer.scored.influence.of(name) for name in METRICS}
    n = len(result.mask)
    sets = {
        "random": random_removals(n, arguments.removals, SHARE, seed),
        "targeted": targeted_removals(influence["arp"], arguments.targeted, SHARE, seed),
    }
    changes = {
        kind: asdict(
            measure_changes(
                run, influence, masks, f"{kind} samples",
                folder=kept, processes=arguments.processes,
            )
        )
        for kind, masks in sets.items()
        if masks
    }  # fmt: skip
    (done,) = retrain(run, [removal("without the mask", result.mask.float())], kept)
    case = Case(run, result.config, None, result.mask, result.theta)
    figures = {
        name: case.measure(theta).metrics
        for name, theta in (
            ("before", run.theta),
            ("after", result.theta),
            ("retrained", done.theta),
        )
    }
    return {
        "seed": seed,
        "damping": result.summary["solver"]["damping"],
        "changes": changes,
        "figures": figures,
        "heldout": result.summary.get("heldout"),
        "null": result.summary["null"],
    }


def main() -> None:
    """Measure, pool, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--removals", type=int, default=10)
    parser.add_argument("--targeted", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/lds"))
    arguments = parser.parse_args()
    seeds = [measure_seed(seed, arguments) for seed in arguments.seeds]
    pooled = {
        kind: {
            metric: asdict(
                agreement(
                    [each["changes"][kind]["predicted"][metric] for each in seeds],
                    [each["changes"][kind]["actual"][metric] for each in seeds],
                )
            )
            for metric in METRICS
        }
        for kind in seeds[0]["changes"]
    }
    moved = {
        state: mean(s["figures"][state]["arp"] - s["figures"]["before"]["arp"] for s in seeds)
        for state in ("after", "retrained")
    }
    arp = pooled["random"]["arp"]
    rows = [
        ("Spearman over random removals, ARP's surrogate", arp["spearman"], 0.65),
        ("|slope − 1| over random removals", -abs(arp["slope"] - 1), -0.15),
        (
            "|closed form's change of ARP / retraining's − 1|",
            -abs(moved["after"] / moved["retrained"] - 1),
            -0.1,
        ),
    ]
    write_json(
        RESULTS / "lds.json",
        {
            "command": f"python benchmarks/lds.py --removals {arguments.removals} "
            f"--targeted {arguments.targeted} --seeds " + " ".join(map(str, arguments.seeds)),
            "machine": describe(),
            "share": SHARE,
            "bars": [
                {"bar": name, "measured": value, "threshold": floor, "met": value >= floor}
                for name, value, floor in rows
            ],
            "pooled": pooled,
            "moved": moved,
            "seeds": seeds,
        },
    )
    for kind, found in pooled.items():
        for metric, each in found.items():
            print(kind, metric, each)
    print(moved)


if __name__ == "__main__":
    main()
