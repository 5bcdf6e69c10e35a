"""All cases of the emulated GPU kernels, all schedules, twenty seeds, races and sanitizers.

    make emu-full

Writes results/emu.json after every op and variant, and goes on where it stopped: what was found
of an op stands as long as the sources that it depends on are the same. No GPU takes part: what this
proves, and what not, is in docs/cuda.md.
"""

import argparse
import hashlib
import json
import re
import sys
from functools import cache
from pathlib import Path

from common import describe
from fudlr.common.files import write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CUDA = ROOT / "csrc" / "cuda"
EMU = ROOT / "tests" / "emu"
RESULT = HERE / "results" / "emu.json"
sys.path.insert(0, str(EMU))
from cases import case_names, every_op  # noqa: E402
from emulation import build, separately  # noqa: E402

SEEDS = 20
VARIANTS = {"plain": SEEDS, "check": 1, "sanitize": 1}


def kernel_sources(op):
    """The binding that registers an op, and all of csrc/cuda that it depends on."""
    found = set()
    shared = ROOT / "csrc" / "decoder_ops.h"
    registers = f'm.impl("{op}"'
    ahead = [path for path in CUDA.glob("*_binding.cpp") if registers in path.read_text()]
    if registers in shared.read_text():
        ahead = [shared, CUDA / "decoder_binding.cpp"]
    while ahead:
        path = ahead.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        if path.suffix == ".h":
            ahead.append(path.with_suffix(".cu"))
        ahead += (CUDA / name for name in re.findall(r'#include "cuda/(.*)"', path.read_text()))
    return found


@cache
def watcher_sources():
    """The emulator, and what holds results to the reference."""
    folders = (EMU / "emulator", ROOT / "fudlr_ext" / "testing", ROOT / "fudlr_ext" / "reference")
    files = [path for folder in folders for path in folder.glob("*.*")]
    return {EMU / "run_cases.py", EMU / "emulation.py", *files}


def digest(op):
    """Of the sources that an op's results depend on, and of its cases' names."""
    found = hashlib.sha256("\n".join(case_names(op)).encode())
    for path in sorted(kernel_sources(op) | watcher_sources()):
        found.update(path.read_bytes())
    return found.hexdigest()


def script(name, *options, variant):
    """What a script of tests/emu prints; None, and what it said, where a sanitizer ended it."""
    build(f"emulated_{variant}")
    done = separately(name, *options, variant=variant)
    if done.returncode in (0, 1):
        return json.loads(done.stdout), ""
    return None, done.stderr[-4000:]


def piece_of(op, variant):
    """Run an op's cases under a variant."""
    sources = digest(op)
    how = ["--seeds", str(VARIANTS[variant]), "--only", op]
    found, crash = script("run_cases.py", variant, *how, variant=variant)
    if found is None:
        return {"sources": sources, "crash": crash}
    del found["cases_of"], found["without_kernel"]
    return {"sources": sources, **found}


def start():
    """What was found before, where its sources are the same."""
    record = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    pieces = {
        name: found
        for name, found in record.get("pieces", {}).items()
        if found.get("sources") == digest(name.split()[1]) and "crash" not in found
    }
    return {
        "command": "python benchmarks/emu.py",
        "machine": describe(),
        "seeds": SEEDS,
        "ops": [op for _, op in every_op()],
        "without_kernel": [op for _, op in every_op() if not kernel_sources(op)],
        "pieces": pieces,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--ops", nargs="+", help="these alone")
    options = parser.parse_args()
    record = start()
    write_json(RESULT, record)
    wrong = []
    for variant in options.variants:
        for op in options.ops or record["ops"]:
            if op in record["without_kernel"]:
                continue
            piece = f"{variant} {op}"
            found = record["pieces"].get(piece) or piece_of(op, variant)
            record["pieces"][piece] = found
            write_json(RESULT, record)
            if "crash" in found:
                print(piece, "was ended by a sanitizer, or a crash:", found["crash"], flush=True)
            else:
                said = f"{found['disagreements']} disagreements, {found.get('races', 0)} races"
                print(f"{piece}: {found['cases']} cases, {said}, {found['seconds']} s", flush=True)
            if "crash" in found or found["disagreements"] or found.get("races"):
                wrong.append(piece)
    sys.exit(", ".join(wrong) or 0)


if __name__ == "__main__":
    main()
