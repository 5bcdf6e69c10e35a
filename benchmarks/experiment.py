"""An experiment of the paper: hypotheses, whether each held, a table, a result file.

    python benchmarks/experiment.py NAME [--seeds 0 1 2] [--set name=value …] [--out FOLDER]

Finished cells in --out are kept, so that an interrupted experiment goes on. Without --set it writes
benchmarks/results/experiment_NAME.json; with --set, or --small, FOLDER/NAME.json.
"""

import argparse
from pathlib import Path

from common import RESULTS, write_result
from experiments import EXPERIMENTS
from experiments.common import Options, print_experiment, run_experiment
from fudlr import RunConfig
from fudlr.config import merge
from fudlr.verify import default_processes


def main(arguments: list[str] | None = None) -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="name=value")
    parser.add_argument("--small", action="store_true", help="check that all parts work")
    parser.add_argument("--processes", type=int, default=default_processes())
    parser.add_argument("--out", type=Path, default=Path("out/experiments"))
    given = parser.parse_args(arguments)
    experiment = EXPERIMENTS[given.name]
    settings = dict(each.split("=", 1) for each in given.set)
    config = merge(RunConfig(), {**experiment.defaults, **settings})
    options = Options(config, given.out, tuple(given.seeds), given.small, given.processes)
    found = run_experiment(given.name, experiment, options)
    print_experiment(found)
    own = given.small or settings
    path = given.out / f"{given.name}.json" if own else RESULTS / f"experiment_{given.name}.json"
    command = f"benchmarks/experiment.py {given.name} --seeds {' '.join(map(str, given.seeds))}"
    write_result(path, f"python {command}", **found)


if __name__ == "__main__":
    main()
