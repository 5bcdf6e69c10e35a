"""Rivals on the same trained adapters: `fudlr compare` over seeds.

    python benchmarks/compare.py [--seeds 0 1 2] [--objective arp] [--out out/lds] [--processes 2]

Uses the runs in --out/seed-N/run (trained where they are not there), keeps finished rivals and
retrainings in --out/seed-N/compare-OBJECTIVE, and writes benchmarks/results/compare_OBJECTIVE.json.
"""

import argparse
from pathlib import Path

from common import describe
from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.compare import compare_run, write_comparison
from fudlr.config import merge
from fudlr.run import load_run, train_run

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Compare, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objective", default="arp")
    parser.add_argument("--out", type=Path, default=Path("out/lds"))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    records = []
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        if not (folder / "run").is_dir():
            train_run(merge(RunConfig(), {"seed": seed}), folder / "run")
        run = load_run(folder / "run")
        config = run.config.debias.model_copy(update={"objective": arguments.objective})
        out = folder / f"compare-{arguments.objective}"
        record = compare_run(run, config, out, processes=arguments.processes)
        write_comparison(out, record)
        records.append(record)
    write_json(
        RESULTS / f"compare_{arguments.objective}.json",
        {
            "command": f"python benchmarks/compare.py --objective {arguments.objective} --seeds "
            + " ".join(map(str, arguments.seeds)),
            "machine": describe(),
            "seeds": arguments.seeds,
            "records": records,
        },
    )


if __name__ == "__main__":
    main()
