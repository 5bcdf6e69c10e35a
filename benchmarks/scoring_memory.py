"""Scoring's memory and time from 10³ to 10⁵ samples: products with 8 vectors, batches of 64.

    python benchmarks/scoring_memory.py

Each count runs in a process of its own: peak resident memory less what it was after one batch, and
the processor's time. The products [n, 8] are kept, 3.2 MB for 10⁵ samples, nothing else. Narrow
model and short prompts (hidden 64, 16 positions), so that 10⁵ samples take minutes; both figures
are per batch, whose shape is the same throughout. The result goes to
benchmarks/results/scoring_memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import describe
from transformers import LlamaForCausalLM
from workload import FACE, VECTORS, adapted, llama_config, prompts

from fudlr_ext import Engine

BATCH, POSITIONS, HIDDEN = 64, 16, 64
MEMORY, LINEAR = 16.0, 1.15
"""Most growth in MB beyond the smallest count's, products aside; most time a sample beside it."""


def peak() -> float:
    """Peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(samples: int) -> dict[str, float]:
    """Score that many, batch by batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    engine = Engine(adapted(LlamaForCausalLM(llama_config(HIDDEN))))
    vectors = torch.randn(VECTORS, engine.d)
    scores = torch.empty(samples, VECTORS)
    for _ in range(3):
        engine.sample_dots(*FACE, prompts(POSITIONS, BATCH, 0), vectors)
    before, start = peak(), time.process_time()
    for seed, at in enumerate(range(0, samples, BATCH)):
        rows = min(BATCH, samples - at)
        scores[at : at + rows] = engine.sample_dots(*FACE, prompts(POSITIONS, rows, seed), vectors)
    used = time.process_time() - start
    return {"samples": samples, "cpu_s": used, "grown_mb": peak() - before,
            "scores_mb": scores.nbytes / 2**20}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--one", type=int)
    default = Path(__file__).parent / "results" / "scoring_memory.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    rows = []
    for samples in args.samples:
        command = [sys.executable, __file__, "--one", str(samples)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(found.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    first, last = rows[0], rows[-1]
    growth = (last["grown_mb"] - last["scores_mb"]) - (first["grown_mb"] - first["scores_mb"])
    slower = (last["cpu_s"] / last["samples"]) / (first["cpu_s"] / first["samples"])
    bars = [
        {"bar": "memory's growth, MB", "measured": growth, "threshold": MEMORY,
         "met": growth <= MEMORY},
        {"bar": "time a sample beside the fewest", "measured": slower, "threshold": LINEAR,
         "met": slower <= LINEAR},
    ]  # fmt: skip
    result = {
        "command": f"python benchmarks/scoring_memory.py --samples "
        f"{' '.join(map(str, args.samples))}",
        "machine": {**describe(), "load": os.getloadavg()},
        "bars": bars,
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(bars, indent=1))


if __name__ == "__main__":
    main()
