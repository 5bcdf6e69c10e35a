"""What every command says of thousands of malformed files of runs, results, adapters and bases.

    python benchmarks/malformed.py [--cases 2000]

Each case is a sound folder with one thing in it damaged by chance. Wrong is a traceback, an error
without words of its own, a crash, a hang, or damage that is taken for sound. Writes
benchmarks/results/malformed.json.
"""

import argparse
import collections
import os
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fudlr" / "commands"))
import malformed

SLOW = 20  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "malformed.json")
    options = parser.parse_args()
    os.environ["FUDLR_QUIET"] = "1"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        malformed.make(Path(folder) / "sound")
        outcomes = []
        for seed in range(options.first, options.first + options.cases):
            began_case = time.perf_counter()
            outcome = malformed.try_case(Path(folder) / "sound", Path(folder) / "work", seed)
            outcomes.append(outcome)
            if time.perf_counter() - began_case > SLOW:
                print("slow:", outcome.case, flush=True)
            if outcome.wrong:
                print(outcome.case, outcome.wrong, outcome.words[:300], flush=True)
    record = {
        "cases": len(outcomes),
        "exit_codes": dict(sorted(collections.Counter(str(o.code) for o in outcomes).items())),
        "taken_as_sound": sum(malformed.REACHED in o.words or o.code == 0 for o in outcomes),
        "wrong": [f"{o.case}: {o.wrong}" for o in outcomes if o.wrong],
        "seconds": round(time.perf_counter() - began),
    }
    command = f"python benchmarks/malformed.py --cases {options.cases} --first {options.first}"
    print(record)
    write_result(options.out, command, **record)


if __name__ == "__main__":
    main()
