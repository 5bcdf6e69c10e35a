"""The kernels' own source, run on the CPU, over the rows of OP_CASES and the ops beside them.

A stated part of the cases, all ops among them: of the sample ops every seventh, of the others
fewer, under three schedules. `make emu-full` runs them all, with twenty seeds, and under the race
checker and the sanitizers.
"""

import json
import subprocess
import sys

import pytest
from cases import every_op, without_kernel
from emulation import ROOT, build, separately

from fudlr_ext import _C

# Ops that have no kernel for GPUs: none.
WITHOUT: list[str] = []


def run(variant):
    build(f"emulated_{variant}")
    done = separately("run_cases.py", variant, "--some", variant=variant)
    assert done.returncode in (0, 1), done.stderr[-4000:]
    return json.loads(done.stdout)


def test_agreement():
    result = run("plain")
    assert result["disagreements"] == 0, result["examples"]
    assert result["without_kernel"] == WITHOUT
    assert {*result["cases_of"], *WITHOUT} == {op for _, op in every_op()}


def test_every_op_has_a_kernel_or_is_listed():
    """Asked of the dispatcher, where the library was built with FUDLR_CUDA."""
    if "cuda" not in _C.devices():
        pytest.skip("built without FUDLR_CUDA=ON: there are no GPU kernels to ask for")
    assert without_kernel("cuda") == WITHOUT


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
