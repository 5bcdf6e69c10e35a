"""The kernels' own source, run on the CPU, over the rows of OP_CASES.

A stated part of the cases, all ops among them: every third under three schedules. `make emu-full`
runs them all, with twenty seeds, and under the race checker and the sanitizers.
"""

import json
import subprocess
import sys

import pytest
import torch
from emulation import ROOT, build, separately

from fudlr_ext import _C

# docs/cuda.md lists the ops that have no kernel for GPUs yet.
ON_GPU = ("sample_grads", "sample_dots", "grad_sum", "sample_sketch")

SUBSETS = {"plain": 3}


def run(variant):
    build(f"emulated_{variant}")
    done = separately("run_cases.py", variant, "--subset", str(SUBSETS[variant]), variant=variant)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("variant", SUBSETS)
def test_agreement(variant):
    result = run(variant)
    assert result["disagreements"] == 0, result["examples"]
    assert result.get("races", 0) == 0, result["race_lines"]
    assert result["cases"] >= len(ON_GPU)


def test_ops_have_kernels():
    """Asked of the dispatcher, where the library was built with FUDLR_CUDA."""
    if "cuda" not in _C.devices():
        pytest.skip("built without FUDLR_CUDA=ON: there are no GPU kernels to ask for")
    for op in ON_GPU:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fudlr::{op}", "CUDA"), op


def test_compiled_kernels_keep_what_they_claim():
    """No spills, 128-bit loads, tensor cores, as benchmarks/cuda_static.py reads them."""
    if "cuda" not in _C.devices():
        pytest.skip("built without FUDLR_CUDA=ON: there are no GPU kernels to look at")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "cuda_static.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "cuobjdump is missing" in done.stderr:
        pytest.skip("cuobjdump is missing: pip install .[cuda]")
    assert done.returncode == 0, done.stdout + done.stderr
