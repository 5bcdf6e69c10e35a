"""All cases of the emulated GPU kernels, all schedules, twenty seeds, races and sanitizers.

    make emu-full

Writes results/emu.json after every op and variant, and goes on where it stopped as long as the
sources are the same; counts the traffic of the fused products kernel besides. No GPU takes part:
what this proves, and what not, is in docs/cuda.md.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from fudlr.files import write_json
from machine import describe

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "emu.json"
sys.path.insert(0, str(HERE.parent / "tests" / "emu"))
from cases import every_op  # noqa: E402
from emulation import build, separately  # noqa: E402

SEEDS = 20
VARIANTS = {"plain": SEEDS, "check": 1, "sanitize": 1}
ASKED = 1.15  # of the bytes that the fused products kernel must move, at most


def sources():
    """One digest of the kernels, the emulator and the cases."""
    digest = hashlib.sha256()
    for folder in ("csrc/cuda", "tests/emu", "fudlr_ext/testing", "fudlr_ext/reference"):
        for path in sorted((HERE.parent / folder).rglob("*")):
            if path.suffix in (".cu", ".cuh", ".h", ".cpp", ".py", ".txt"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def script(name, *options, variant):
    build(f"emulated_{variant}")
    done = separately(name, *options, variant=variant)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{name} {' '.join(options)} ended with {done.returncode}: a sanitizer's "
                         f"report, or a crash\n{done.stderr[-4000:]}")  # fmt: skip
    return json.loads(done.stdout)


def start(digest):
    """What was found before, if of the same sources."""
    if RESULT.is_file():
        record = json.loads(RESULT.read_text())
        if record.get("sources") == digest:
            return record
    return {"command": "python benchmarks/emu.py", "sources": digest, "pieces": {}}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--ops", nargs="+", help="these alone")
    options = parser.parse_args()
    ops = options.ops or [op for _, op in every_op()]
    record = start(sources())
    record |= {"machine": describe(), "seeds": SEEDS, "asked_ratio": ASKED}
    record["ops"] = [op for _, op in every_op()]
    if "traffic" not in record:
        record["traffic"] = script("traffic.py", variant="check")
    for variant in options.variants:
        for op in ops:
            piece = f"{variant} {op}"
            if piece not in record["pieces"]:
                how = ["--seeds", str(VARIANTS[variant]), "--only", op]
                found = script("run_cases.py", variant, *how, variant=variant)
                del found["cases_of"]
                record["without_kernel"] = found.pop("without_kernel")
                record["pieces"][piece] = found
                write_json(RESULT, record)
            found = record["pieces"][piece]
            print(piece, found["cases"], "cases", found["disagreements"], "disagreements",
                  found.get("races", 0), "races", found["seconds"], "s", flush=True)  # fmt: skip
    wrong = [
        piece for piece, found in record["pieces"].items()
        if found["disagreements"] or found.get("races")
    ]  # fmt: skip
    for row in record["traffic"]:
        print("sample_dots", row["shape"], row["dtype"], f"{row['ratio']:.3f} of the bytes")
        if row["ratio"] > ASKED:
            wrong.append(f"traffic of {row['shape']}")
    sys.exit(", ".join(wrong))


if __name__ == "__main__":
    main()
