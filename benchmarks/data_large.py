"""Peak memory and time of reading 10⁷ interactions, as Parquet and as CSV, with `fudlr data check`.

    python benchmarks/data_large.py [--interactions N] [--forms parquet csv] [--out FILE]

The data are made up: users and items with power laws, written in parts. Each form is read by a
process of its own, whose largest resident size the operating system tells.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from common import describe

LIMIT = 4 * 2**30
PART = 10**6


def write(folder: Path, form: str, interactions: int) -> Path:
    """A table of one million rows a part: CSV grows by appending, Parquet in one folder."""
    users, items = max(interactions // 100, 10), max(interactions // 1000, 100)
    rng = np.random.default_rng(0)
    path = folder / f"interactions.{form}"
    parts = []
    for start in range(0, interactions, PART):
        n = min(PART, interactions - start)
        part = pl.DataFrame(
            {
                "user_id": rng.integers(0, users, n),
                "item_id": (items * rng.random(n) ** 3).astype(np.int64),
                "timestamp": rng.integers(10**9, 2 * 10**9, n),
            }
        )
        if form == "csv":
            with path.open("ab") as file:
                part.write_csv(file, include_header=start == 0)
        else:
            parts.append(folder / f"part{start}.parquet")
            part.write_parquet(parts[-1])
    if parts:
        pl.scan_parquet(parts).sink_parquet(path)
        for each in parts:
            each.unlink()
    return path


def read(path: Path) -> dict:
    """`fudlr data check` on `path` in a process of its own: seconds, peak bytes, its last words."""
    start = time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "from fudlr.cli import main; main()",
        "data",
        "check",
        str(path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "file_bytes": path.stat().st_size,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * scale,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=int, default=10**7)
    parser.add_argument("--forms", nargs="+", default=["parquet", "csv"])
    default = Path(__file__).parent / "results" / "data_large.json"
    parser.add_argument("--out", type=Path, default=default)
    given = parser.parse_args()
    forms = {}
    for form in given.forms:
        with tempfile.TemporaryDirectory() as folder:
            forms[form] = read(write(Path(folder), form, given.interactions))
        peak = forms[form]["peak_bytes"]
        forms[form]["met"] = peak < LIMIT
        print(f"{form}: {peak / 2**30:.2f} GiB, {forms[form]['cpu_seconds']:.0f} CPU s")
    found = {
        "command": "python benchmarks/data_large.py",
        "interactions": given.interactions,
        "bar": {"below_bytes": LIMIT},
        "forms": forms,
        "own_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "machine": describe(),
    }
    given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
