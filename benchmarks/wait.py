"""What a request's command does beside the request itself: CPU seconds of every stage.

    python benchmarks/wait.py [--run FOLDER]

Made-up data of 6,040 users and 3,416 items, the shape of MovieLens-1M, trained with a store at the
defaults; then `debias` at its defaults with all that its command writes. The bar: the command takes
at most twice the CPU seconds of the stages without which there is no updated adapter. `--run` keeps
the trained run for another time.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import fudlr
import numpy as np
import polars as pl
from common import RESULTS, bar, write_result
from fudlr.common.memory import keep_freed
from fudlr.config import RunConfig, merge
from fudlr.data import synthetic
from fudlr.debias import debias
from fudlr.output import results
from fudlr.run import train_run

USERS, ITEMS, BAR = 6040, 3416, 2.0
OPTIONS = {"train.through": "engine"}  # the same adapter to rounding, in half the time


def write_data(folder: Path) -> Path:
    """Interactions, users and items as files, so that reading them is part of the run."""
    made = synthetic(USERS, ITEMS, per_user=(20, 60), n_genres=18)
    folder.mkdir(parents=True)
    rows = {
        "user_id": made.users["user_id"].to_numpy()[made.user],
        "item_id": made.items["item_id"].to_numpy()[made.item],
        "timestamp": np.asarray(made.time),
    }
    pl.DataFrame(rows).write_parquet(folder / "interactions.parquet")
    made.users.write_parquet(folder / "users.parquet")
    made.items.write_parquet(folder / "items.parquet")
    return folder


def main() -> None:
    """Train where there is no run yet, debias, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    asked = parser.parse_args()
    os.environ["FUDLR_QUIET"] = "1"
    keep_freed()  # as the command does
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.run or Path(temporary) / "run"
        if not folder.is_dir():
            data = write_data(folder.with_name(folder.name + "-data"))
            train_run(merge(RunConfig(), {**OPTIONS, "data.source": str(data)}), folder)
        run = fudlr.load_run(folder)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        result = debias(run, force=True)  # made-up data may bear a signature of failure
        results.write_result(Path(temporary) / "result", result)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu, cost = result.summary["cpu_seconds"], result.summary["cost"]
    needed = sum(cpu[stage] for stage in cost["stages"])
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    whole = user + system
    write_result(
        RESULTS / "wait.json",
        "python benchmarks/wait.py",
        users=USERS,
        items=ITEMS,
        samples=len(result.mask),
        update=result.summary["update"]["rule"],
        cpu_seconds=cpu,
        request_cpu_seconds=needed,
        command_cpu_seconds=whole,
        command_system_seconds=system,
        command_seconds=wall,
        training_seconds=cost["training_seconds"],
        peak_gib=after.ru_maxrss / 2**20,
        bars=[bar("CPU time of the command in that of its request", whole / needed, BAR,
                  least=False)],
    )  # fmt: skip
    print({**cpu, "request": needed, "command": whole, "system": system, "wall": wall})


if __name__ == "__main__":
    main()
