"""The kernels' own source, run on the CPU, over the rows of OP_CASES.

A stated part of the cases, all ops among them: every third under three schedules for agreement,
fewer under the checker and the sanitizers. `make emu-full` runs them all, with twenty seeds.
"""

import json

import pytest
import torch
from emulation import build, separately

from fudlr_ext import _C
from fudlr_ext.testing import OP_CASES

SUBSETS = {"plain": 3, "check": 17, "sanitize": 13}


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
    assert result["cases"] >= len(OP_CASES)


def test_every_schema_has_a_kernel():
    """Asked of the dispatcher, where the library was built with FUDLR_CUDA."""
    if "cuda" not in _C.devices():
        pytest.skip("built without FUDLR_CUDA=ON: there are no GPU kernels to ask for")
    for case in OP_CASES:
        name = f"fudlr::{case.name}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name
