"""What a request's command does beside the request itself: CPU seconds of every stage.

    python benchmarks/wait.py [--run FOLDER] [--quick]

Made-up data of 6,040 users and 3,416 items (the shape of MovieLens-1M), a brief training with a
store, then `debias` at its defaults with all that its command writes. The bar: the whole takes at
most twice the CPU seconds of the stages without which there is no updated adapter. `--run` keeps
the trained run for another time. Writes benchmarks/results/wait.json.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import fudlr
import numpy as np
import polars as pl
from common import describe
from fudlr.common.files import write_json
from fudlr.config import RunConfig, merge
from fudlr.data.synthetic import synthetic
from fudlr.debias import debias
from fudlr.output.results import write_result
from fudlr.run import train_run

RESULT = Path(__file__).parent / "results" / "wait.json"
USERS, ITEMS, BAR = 6040, 3416, 2.0
OPTIONS = {"train.epochs": 1, "train.through": "engine", "model.pretrain_epochs": 0}


def write_data(folder: Path) -> Path:
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--per-user", type=int, default=8, help="training samples a user, at most")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.run or Path(temporary) / "run"
        if not folder.is_dir():
            data = write_data(folder.with_name(folder.name + "-data"))
            train_run(
                merge(
                    RunConfig(),
                    {
                        **OPTIONS,
                        "data.source": str(data),
                        "data.max_train_per_user": asked.per_user,
                    },
                ),
                folder,
            )
        run = fudlr.load_run(folder)
        options = {"curve": (), "heldout": False} if asked.quick else {}
        # So brief a training bears signatures of failure.
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        result = debias(run, force=True, **options)
        write_result(Path(temporary) / "result", result)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = result.summary["cpu_seconds"]
    needed = sum(cpu[stage] for stage in result.summary["cost"]["stages"])
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    found = {
        "machine": describe(),
        "users": USERS,
        "items": ITEMS,
        "samples": len(result.mask),
        "quick": asked.quick,
        "cpu_seconds": cpu,
        "request_cpu_seconds": needed,
        "command_cpu_seconds": user + system,
        "command_system_seconds": system,
        "command_seconds": wall,
        "peak_gib": after.ru_maxrss / 2**20,
        "times_the_request": (user + system) / needed,
        "bar": BAR,
    }
    write_json(asked.out, found)
    print("\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
