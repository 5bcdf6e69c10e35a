"""What the compiled GPU kernels are made of, read from the library: no GPU needed.

    python benchmarks/cuda_static.py          # writes results/cuda_static.json
    python benchmarks/cuda_static.py --check  # only fails where a kernel lost what it claims

Per kernel and architecture: registers, shared memory, spills (none are allowed), 128-bit loads and
tensor-core instructions.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from common import describe
from fudlr.common.files import write_json

from fudlr_ext import _C

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "cuda_static.json"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

# Kernel: threads a block, and what its instructions must show. "wide": 128-bit global loads;
# "tensor": tensor-core instructions, with their operands from ldmatrix; or in 16 bits alone.
# "wide but in 16 bits": a sample's row is read four numbers at a time.
CLAIMS = {
    "sample_grads_kernel": (128, {"wide"}),
    "sample_dots_kernel": (128, {"wide"}),
    "grad_sum_kernel": (128, {"wide"}),
    "sample_grads_mma_kernel": (128, {"wide", "tensor"}),
    "sample_dots_mma_kernel": (128, {"wide", "tensor"}),
    "grad_sum_mma_kernel": (128, {"wide", "tensor"}),
    "sample_dots_finish_kernel": (256, set()),
    "grad_sum_finish_kernel": (256, set()),
    "check_offsets_kernel": (1024, set()),
    "row_dots_kernel": (128, {"wide"}),
    "row_sums_kernel": (128, {"wide"}),
    "join_parts_kernel": (256, set()),
    "catalogue_mean_kernel": (128, {"wide", "tensor in 16 bits"}),
    "catalogue_gradient_kernel": (128, {"wide", "tensor in 16 bits"}),
    "catalogue_top_kernel": (128, {"wide", "tensor in 16 bits"}),
    "catalogue_mean_finish_kernel": (256, set()),
    "catalogue_gradient_finish_kernel": (256, set()),
    "check_seen_kernel": (1024, set()),
    "seen_keys_kernel": (256, set()),
    "rms_norm_kernel": (256, {"wide"}),
    "rms_norm_tangent_kernel": (256, {"wide"}),
    "rms_norm_backward_kernel": (256, {"wide"}),
    "swiglu_kernel": (256, {"wide"}),
    "swiglu_tangent_kernel": (256, {"wide"}),
    "swiglu_backward_kernel": (256, {"wide"}),
    "rotate_heads_kernel": (256, set()),
    "attention_kernel": (256, {"wide"}),
    "attention_sums_kernel": (256, {"wide"}),
    "attention_part_kernel": (256, {"wide"}),
    "check_attention_kernel": (256, set()),
}

SPILLS = ("LDL", "STL")


def find_tool():
    """The path of cuobjdump: of the toolkit, or of the wheel nvidia-cuda-cuobjdump; or None."""
    wheels = Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu*/bin/cuobjdump")
    return shutil.which("cuobjdump") or next(map(str, wheels), None)


def dump(tool, library, option):
    path = Path(tool).parent  # nvdisasm lies beside it
    done = subprocess.run(
        [tool, option, str(library)],
        capture_output=True, text=True, check=True, env={"PATH": f"{path}:/usr/bin:/bin"},
    )  # fmt: skip
    return done.stdout.splitlines()


def plain_names(mangled):
    """Kernel names as `kernel<arguments>`."""
    done = subprocess.run(
        ["c++filt", "-p"], input="\n".join(mangled), capture_output=True, text=True, check=True
    )
    short = {"fudlr::cuda_device::": "", "__nv_bfloat16": "bf16", "__half": "f16"}
    names = done.stdout.splitlines()
    for long, name in short.items():
        names = [line.replace(long, name) for line in names]
    return names


def usage(tool, library):
    """(architecture, mangled name) -> registers, stack and shared bytes."""
    found, architecture, name = {}, None, None
    for line in dump(tool, library, "-res-usage"):
        if match := re.match(r"\s*arch = (sm_\d+)", line):
            architecture = match[1]
        elif architecture not in ARCHITECTURES:
            continue
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            if name is not None:
                found[architecture, name] = dict(
                    zip(("registers", "stack", "shared"), map(int, match.groups()), strict=True)
                )
            name = None
    return found


def instructions(tool, library):
    """(architecture, mangled name) -> how often each instruction occurs."""
    found, architecture, name = {}, None, None
    for line in dump(tool, library, "-sass"):
        if match := re.match(r"\s*arch = (sm_\d+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            name = found.setdefault((architecture, match[1]), Counter())
        elif name is not None and (
            match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)
        ):
            name[match[1]] += 1
    return found


def rows(tool, library):
    counted = instructions(tool, library)
    table = []
    used = usage(tool, library)
    names = plain_names([name for _, name in used])
    for ((architecture, mangled), numbers), name in zip(used.items(), names, strict=True):
        base = name.partition("<")[0]
        threads, claims = CLAIMS.get(base, (None, None))
        seen = counted[architecture, mangled]
        table.append(
            {
                "kernel": name,
                "architecture": architecture,
                "claims": None if claims is None else sorted(claims),
                **numbers,
                "spills": sum(n for op, n in seen.items() if op.startswith(SPILLS)),
                "wide_loads": sum(n for op, n in seen.items() if re.match(r"LDG.*\.128", op)),
                "tensor": sum(n for op, n in seen.items() if op.startswith("HMMA")),
                "matrix_loads": sum(n for op, n in seen.items() if op.startswith("LDSM")),
                "threads": threads,
            }
        )
    return sorted(table, key=lambda row: (row["kernel"], ARCHITECTURES.index(row["architecture"])))


def complaints(table, architectures):
    """What was lost, one line each; every kernel is to be there for each of `architectures`."""
    lost = []
    for row in table:
        where = f"{row['kernel']} on {row['architecture']}"
        if row["claims"] is None:
            lost.append(f"{where} has no line in CLAIMS")
            continue
        if row["spills"] or row["stack"]:
            lost.append(f"{where} spills: {row['spills']} instructions, {row['stack']} bytes")
        narrow = any(f"<{name}" in row["kernel"] for name in ("bf16", "f16"))
        wide = "wide" in row["claims"] or ("wide but in 16 bits" in row["claims"] and not narrow)
        if wide and not row["wide_loads"]:
            lost.append(f"{where} has no 128-bit loads")
        tensor = "tensor" in row["claims"] or ("tensor in 16 bits" in row["claims"] and narrow)
        if tensor and not (row["tensor"] and row["matrix_loads"]):
            lost.append(f"{where} does not use tensor cores")
    for base in CLAIMS:
        missing = set(architectures) - {
            row["architecture"] for row in table if row["kernel"].partition("<")[0] == base
        }
        lost += [f"{base} was not compiled for {name}" for name in sorted(missing)]
    return lost


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    if "cuda" not in _C.devices():
        sys.exit("cuda_static: the library has no GPU kernels. Build it with FUDLR_CUDA=ON")
    tool = find_tool()
    if tool is None:
        sys.exit("cuda_static: cuobjdump is missing. pip install .[cuda]")
    table = rows(tool, _C.__file__)
    # A check takes what FUDLR_CUDA_GPUS asked for; the result file is of all.
    there = {row["architecture"] for row in table}
    lost = complaints(table, there if options.check and there else ARCHITECTURES)
    print("\n".join(lost) or f"{len(table)} kernels: no spills, all claims hold")
    if lost:
        sys.exit(1)
    if options.check:
        return
    write_json(
        RESULT,
        {"command": "python benchmarks/cuda_static.py", "machine": describe(), "kernels": table},
    )


if __name__ == "__main__":
    main()
