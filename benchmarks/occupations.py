"""A mask for each occupation of MovieLens-100k beside one mask for everyone.

    python benchmarks/occupations.py [--seeds 0 1 2] [--out out/lds] [--small]

For each seed: `fudlr grouped --by occupation` for ARP at a budget of 5%, from whole gradients. Each
set is judged on its own test users, by the adapter of its own mask and by that of everyone's. Runs
are those of benchmarks/lds.py where it ran before. Writes benchmarks/results/occupations.json;
--small checks that all parts work, on a fraction of the samples, and writes into --out.
"""

import argparse
from pathlib import Path

from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.demo import SMALL
from fudlr.groups import Grouped, debias_groups, sets_of_column
from fudlr.run import load_run, train_run
from machine import describe

RESULTS = Path(__file__).parent / "results"
COLUMN, OBJECTIVE, BUDGET = "occupation", "arp", 0.05
SHOWN = ("arp", "arp_soft", "ndcg@10")


def figures(found: Grouped) -> dict:
    """Every set's test users, overlap with everyone's mask, and relative changes."""
    sets = {}
    for one in found.found:
        _, low, high = one.change["arp_soft"]
        first = one.before["arp_soft"]
        sets[one.name] = {
            "users": list(one.users),
            "removed": int(one.mask.sum()),
            "overlap": found.overlap(one),
            "own": {m: one.after[m] / one.before[m] - 1 for m in SHOWN if one.before[m]},
            "everyones": {m: one.shared[m] / one.before[m] - 1 for m in SHOWN if one.before[m]},
            "interval": [low / first, high / first],
        }
    return {"sets": sets, "backward_prompts": found.backward, "seconds": found.seconds}


def main() -> None:
    """Request, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/lds"))
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    seeds = {}
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}" / "run"
        if not folder.is_dir():
            small = SMALL if arguments.small else {}
            train_run(merge(RunConfig(), {"seed": seed, **small}), folder)
        run = load_run(folder)
        asked = {"objective": OBJECTIVE, "budget": BUDGET, "rows": "memory"}
        sets = sets_of_column(run.interactions, COLUMN)
        seeds[str(seed)] = figures(
            debias_groups(run, sets, run.config.debias.model_copy(update=asked))
        )
        write_json(
            (arguments.out if arguments.small else RESULTS) / "occupations.json",
            {
                "command": "python benchmarks/occupations.py --seeds "
                + " ".join(map(str, arguments.seeds)),
                "machine": describe(),
                "column": COLUMN,
                "objective": OBJECTIVE,
                "budget": BUDGET,
                "seeds": seeds,
            },
        )


if __name__ == "__main__":
    main()
