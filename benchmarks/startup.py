"""What the command line costs before it works: CPU seconds of whole processes, in turn.

    python benchmarks/startup.py

`fudlr --help`, and `fudlr debias` at its defaults on the recorded run of `fudlr demo --small`,
beside a process that imports torch, transformers and peft alone.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, bar, write_result
from fudlr.common.reading import read_json

ROUNDS = 7
HELP_SECONDS, TIMES_IMPORTS = 0.15, 2.5
LIBRARIES = "import torch, transformers, peft"
MODULES = """
from peft import PeftModel
from transformers import LlamaForCausalLM
import fudlr.debias, fudlr.output.results, fudlr.report, fudlr.run
"""


def cpu_seconds(command: list[str]) -> float:
    """CPU time of a process, of the system for it included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Train the demo, then start every process `ROUNDS` times after one that warms caches."""
    os.environ["FUDLR_QUIET"] = "1"
    fudlr = [sys.executable, "-m", "fudlr"]
    with tempfile.TemporaryDirectory() as temporary:
        demo, out = Path(temporary) / "demo", Path(temporary) / "result"
        cpu_seconds([*fudlr, "demo", "--small", "--out", str(demo)])
        request = ["debias", str(demo / "run"), "--out", str(out)]
        work = {
            "python": [sys.executable, "-c", ""],
            "typer": [sys.executable, "-c", "import typer"],
            "help": [*fudlr, "--help"],
            "libraries": [sys.executable, "-c", LIBRARIES],
            "modules": [sys.executable, "-c", LIBRARIES + MODULES],
            "debias": [*fudlr, *request],
        }
        every: dict[str, list[float]] = {name: [] for name in [*work, "request"]}
        for round_ in range(ROUNDS + 1):
            for name, command in work.items():
                used = cpu_seconds(command)
                if round_:
                    every[name].append(used)
            if round_:
                cost = read_json(out / "summary.json", dict)["cost"]
                every["request"].append(cost["command_cpu_seconds"])
    median = {name: statistics.median(used) for name, used in every.items()}
    times = median["debias"] / median["libraries"]
    write_result(
        RESULTS / "startup.json",
        "python benchmarks/startup.py",
        cpu_seconds=median,
        cpu_all_seconds=every,
        bars=[
            bar("CPU seconds of fudlr --help", median["help"], HELP_SECONDS, least=False),
            bar("fudlr debias in imports of torch, transformers, peft", times, TIMES_IMPORTS,
                least=False),
        ],
    )  # fmt: skip
    print({**median, "times": times})


if __name__ == "__main__":
    main()
