"""How far a request's figures move with the instruction set and the number of threads.

    python benchmarks/rounding.py [--out out/rounding]

The demo's small version is trained, recorded and debiased for ARP and for Hellinger in a process
for each of `WAYS`. Losses of trainings agree to rounding, but Adam divides by gradients that are
next to 0, so that single parameters differ by more. Beside the first way: samples that another mask
has, the largest difference of a change, in points of a percent, of surrogates and of the lists'
figures, and how many lists are others. Writes benchmarks/results/rounding.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fudlr
import torch
from common import RESULTS, write_result
from fudlr.cli.demo import OBJECTIVES, SMALL
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.metrics.scores import top_k

WAYS: dict[str, dict[str, str]] = {
    "AVX-512": {},
    "AVX-512, 2 threads": {"OMP_NUM_THREADS": "2"},
    "AVX2": {"FUDLR_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "portable": {"FUDLR_ISA": "portable", "ATEN_CPU_CAPABILITY": "default",
                 "ONEDNN_MAX_CPU_ISA": "SSE41"},
}  # fmt: skip


def answer(folder: Path) -> dict[str, Any]:
    """The training's losses, and of each objective the mask, the figures and the lists."""
    run = fudlr.train_run(merge(fudlr.RunConfig(), SMALL), folder, overwrite=True)
    found: dict[str, Any] = {"losses": run.losses}
    for name in OBJECTIVES:
        result = fudlr.debias(run, objective=name, curve=(), heldout=False)
        run.engine.load(result.theta)
        scores = run.recommender.evaluate(run.test.samples, 64)[0]
        lists = top_k(scores, run.test.side).sort(1).values
        run.engine.load(run.theta)
        states = (result.summary[state] for state in ("before", "after"))
        found[name] = {"mask": result.mask.int(), "lists": lists, "change": changes(*states)}
    return found


def changes(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Relative, in percent."""
    return {name: 100 * (after[name] / value - 1) for name, value in before.items() if value}


def beside(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Differences of one way from the first."""
    out: dict[str, Any] = {
        "losses": max(abs(a / b - 1) for a, b in zip(first["losses"], other["losses"], strict=True))
    }
    for name in OBJECTIVES:
        mine, own = first[name], other[name]
        off = {key: abs(value - own["change"][key]) for key, value in mine["change"].items()}
        lists = {key: value for key, value in off.items() if "@" in key or key + "_soft" in off}
        out[name] = {
            "samples_of_another_mask": int((mine["mask"] != own["mask"]).sum()),
            "lists_that_are_others": float((mine["lists"] != own["lists"]).any(1).double().mean()),
            "surrogates": max(value for key, value in off.items() if key not in lists),
            "steered_of_the_lists": off["arp" if name == "arp" else "hellinger@10"],
            "lists": max(lists.values()),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/rounding"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    fetch_ml100k()
    if given.one:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.save(answer(given.one / "run"), given.one / "found.pt")
        return
    found = {}
    for name, environment in WAYS.items():
        folder = given.out.resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--one", str(folder)]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        subprocess.run(command, check=True, env=settings)
        found[name] = torch.load(folder / "found.pt")
        print(name, beside(found["AVX-512"], found[name]), flush=True)
    first = found.pop("AVX-512")
    write_result(
        RESULTS / "rounding.json",
        "python benchmarks/rounding.py",
        removed=int(first["arp"]["mask"].sum()),
        change={name: first[name]["change"] for name in OBJECTIVES},
        ways={name: beside(first, each) for name, each in found.items()},
    )


if __name__ == "__main__":
    main()
