"""An experiment of `fudlr experiment` at its defaults, as a result file.

    python benchmarks/experiments.py NAME [--seeds 0 1 2] [--out out/experiments]

Finished cells in --out are kept. Writes benchmarks/results/experiment_NAME.json.
"""

import argparse
from pathlib import Path

from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.experiments import EXPERIMENTS, Options, print_experiment, run_experiment
from machine import describe

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("out/experiments"))
    given = parser.parse_args()
    experiment = EXPERIMENTS[given.name]
    config = merge(RunConfig(), experiment.defaults)
    options = Options(config, given.out, tuple(given.seeds))
    found = run_experiment(experiment, options)
    print_experiment(found)
    command = f"python benchmarks/experiments.py {given.name} --seeds "
    record = {
        "command": command + " ".join(map(str, given.seeds)),
        "machine": describe(),
        **found,
    }
    write_json(RESULTS / f"experiment_{given.name}.json", record)


if __name__ == "__main__":
    main()
