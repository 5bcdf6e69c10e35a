"""Whether two source trees give the same masks and figures on the demo's runs.

    python benchmarks/same_results.py --tree BEFORE [--against AFTER] [--seeds 0 1 2] [--out FOLDER]

Runs the command line of each tree on MovieLens-100k as the demo does: a training a seed, then
requests for each objective from rows in memory, the default sweep and a grouped request, the last
two predicted only. What is finished is kept in --out, by tree and seed. Rows of a store are left
out: since f4df18f they are sketches of all matrices in int8, so that figures differ on purpose. So
are trade-off curves, which are measured on 500 users since.
With --converged, solves run to a relative residual of 1e-6: unconverged float32 steps carry the
order of the kernels' sums into the scores, and with it into which of two equal samples is taken.
With --against, compares masks and figures to 1e-5 relative and writes
benchmarks/results/same_results.json.

Both trees are asked for the same things; an option that one of them does not have is left out there
(`OPTIONS` has its names).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
from common import describe
from fudlr.common.files import write_json

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5
OBJECTIVES = ("arp", "hellinger")
OPTIONS = {
    # The method before unrolling was recorded, by the names of either tree.
    "train": (
        ("train.through=peft",),
        ("record.epochs=last",),
    ),
    "debias": (("debias.update=closed_form", "debias.update=one_step"),),
}
JOBS = {
    objective: ["debias", "--objective", objective, "--rows", "memory"] for objective in OBJECTIVES
} | {
    "sweep": ["sweep", "--objective", "arp", "--rows", "memory"],
    "grouped": ["grouped", "--objective", "arp", "--by", "occupation", "--rows", "memory",
                "--set", "debias.force=true"],
}  # fmt: skip
LEFT_OUT = {"seconds", "cpu_seconds", "wall_seconds", "cost", "versions", "config", "run", "time",
            "intervals", "curve", "residual", "score_residual"}  # fmt: skip
"""Of a tree or a machine, not of the method; intervals, which were centred on their figure since:
those before excluded it (coverage, Gini, entropy); and residuals of solves."""
RENAMED = {"signatures": "diagnostics", "slope_left": "gradient_left"}
"""Names of before by those of after."""


CONVERGED = """
import importlib
def put(module, act):
    try: act(importlib.import_module(module))
    except ImportError: pass
for name in ("fudlr.solvers.cg", "fudlr.influence.solvers.cg"):
    put(name, lambda found: found.solve_cg.__kwdefaults__.update(tolerance=1e-6))
for name in ("fudlr.removal", "fudlr.pipeline.evidence"):
    put(name, lambda found: setattr(found, "MAX_STEPS", 2000))
"""
"""What either tree runs first for solves that converge; modules by both trees' names."""


def fudlr(tree: Path, *arguments: str, first: str = "") -> None:
    """Run `fudlr` of that tree."""
    path = os.pathsep.join((str(tree), str(tree / "python")))
    command = [sys.executable, "-c", f"{first}\nfrom fudlr.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{tree}: fudlr {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


def known(tree: Path, section: str) -> list[str]:
    """`--set` options of `OPTIONS` as this tree has them."""
    code = (
        "import sys; from fudlr.cli.options import configure\n"
        "try: configure(None, [sys.argv[1]], None, {})\n"
        "except Exception: sys.exit(1)"
    )
    path = os.pathsep.join((str(tree), str(tree / "python")))
    found = []
    for names in OPTIONS[section]:
        for name in names:
            command = [sys.executable, "-c", code, name]
            if not subprocess.run(
                command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False
            ).returncode:
                found += ["--set", name]
                break
    return found


def work(tree: Path, folder: Path, seed: int, *, converged: bool) -> Path:
    """Train and answer everything that is not in `folder` yet; where the answers are."""
    run = folder / "run"
    if not (run / "train.json").is_file():
        fudlr(tree, "train", "--out", str(run), "--seed", str(seed), *known(tree, "train"))
    options, first = known(tree, "debias"), CONVERGED if converged else ""
    answers = folder / "converged" if converged else folder
    answers.mkdir(exist_ok=True)
    for name, arguments in JOBS.items():
        marker = answers / f"{name}.done"
        if not marker.is_file():
            shutil.rmtree(answers / name, ignore_errors=True)
            command, *rest = arguments
            out = ("--out", str(answers / name))
            fudlr(tree, command, str(run), *out, *rest, *options, first=first)
            marker.touch()
    return answers


def read(folder: Path) -> dict[str, object]:
    """What every job of a seed answered: masks as lists of removed ids, figures by their path."""
    found: dict[str, object] = {}
    for name in JOBS:
        out = folder / name
        for table in sorted(out.glob("mask*.parquet")):
            rows = pl.read_parquet(table)
            for column in rows.columns:
                if column.startswith("mask"):
                    removed = rows.filter(pl.col(column) == 1)["sample_id"].sort().to_list()
                    found[f"{name}/{column}"] = removed
        for file in ("summary", "sweep", "grouped"):
            if (out / f"{file}.json").is_file():
                record = json.loads((out / f"{file}.json").read_text(encoding="utf-8"))
                found |= flat(f"{name}/{file}", record)
    return found


def flat(path: str, value: object) -> dict[str, float]:
    """Numbers by where they stand."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, int | float):
        return {path: float(value)}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, float] = {}
    for at, part in parts:
        name = part.get("name", at) if isinstance(part, dict) else at
        interval = path.startswith("grouped/grouped/sets/") and name == "change"
        if name not in LEFT_OUT and not interval:
            found |= flat(f"{path}/{RENAMED.get(name, name)}", part)
    return found


def compare(first: dict[str, object], second: dict[str, object]) -> dict:
    """Masks that differ, the largest relative differences, and what only one tree says."""
    shared = sorted(set(first) & set(second))
    masks = [name for name in shared if isinstance(first[name], list)]
    figures = [name for name in shared if not isinstance(first[name], list)]
    # A change or an interval's end may be near 0: rounding is beside the figure's own size.
    off = {
        name: abs(first[name] - second[name]) / max(abs(first[name]), abs(second[name]), 1e-3)
        for name in figures
    }
    beyond = {n: [first[n], second[n], off[n]] for n in figures if not off[n] <= TOLERANCE}
    worst = dict(sorted(beyond.items(), key=lambda each: -each[1][2])[:40])
    return {
        "masks": len(masks),
        "masks_that_differ": {
            name: len(set(first[name]) ^ set(second[name]))
            for name in masks
            if first[name] != second[name]
        },
        "figures": len(figures),
        "largest_difference": max(off.values(), default=0.0),
        "figures_beyond_tolerance": len(beyond),
        "worst": worst,
        "only_before": len(set(first) - set(second)),
        "only_after": len(set(second) - set(first)),
    }


def commit(tree: Path) -> str:
    """The commit that a tree is at."""
    done = subprocess.run(
        ["git", "-C", str(tree), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, required=True, help="The tree before.")
    parser.add_argument("--against", type=Path, help="The tree after.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/same_results"))
    parser.add_argument("--converged", action="store_true")
    arguments = parser.parse_args()
    trees = [tree.resolve() for tree in (arguments.tree, arguments.against) if tree is not None]
    folders = [(arguments.out / commit(tree)).resolve() for tree in trees]
    found = {}
    for seed in arguments.seeds:
        answers = []
        for tree, folder in zip(trees, folders, strict=True):
            place = work(tree, folder / f"seed-{seed}", seed, converged=arguments.converged)
            answers.append(read(place))
        if len(answers) == 2:
            found[f"seed {seed}"] = compare(*answers)
            print(seed, json.dumps(found[f"seed {seed}"], indent=1))
    if not found:
        return
    same = all(
        not each["masks_that_differ"] and not each["figures_beyond_tolerance"]
        for each in found.values()
    )
    record = {
        "command": "python benchmarks/same_results.py --tree BEFORE --against AFTER --seeds "
        + " ".join(map(str, arguments.seeds))
        + (" --converged" if arguments.converged else ""),
        "machine": describe(),
        "before": commit(trees[0]),
        "after": commit(trees[1]),
        "tolerance": TOLERANCE,
        "same": same,
        "seeds": found,
    }
    write_json(RESULTS / "same_results.json", record)
    print("the same" if same else "not the same")


if __name__ == "__main__":
    main()
