"""The rows of benchmarks/gpu.py in small, on the CPU and, with -m gpu, on a GPU: all ways agree."""

import gpu
import pytest
import torch
from gpu_cases import FAMILIES

from fudlr_ext import _C


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_ways_of_every_row_agree(family, device):
    if device == "cuda" and not (torch.cuda.is_available() and "cuda" in _C.devices()):
        pytest.skip("no CUDA device is at hand, or the library has no GPU kernels")
    for row in FAMILIES[family](True):
        ways = row.build(device)
        errors, timed = gpu.checked(row, ways)
        assert timed.keys() == ways.keys() - {"truth"}, f"{row}: {errors}"
        ours = ways["ours"]()
        wrong = ours[0] if isinstance(ours, tuple) else ours
        ways["ours"] = lambda wrong=wrong, ours=ours: (
            wrong * 1.1 if wrong is ours else (wrong * 1.1, *ours[1:])
        )
        with pytest.raises(gpu.WrongAnswer):
            gpu.checked(row, ways)


ON_THE_HOST = ("fudlr_record", "fudlr_unroll")
"""Libraries of ops that have no GPU kernel: stores, and trainings unrolled from them."""


def test_every_op_with_a_gpu_kernel_has_rows():
    measured = {row.op.partition(",")[0] for rows in FAMILIES.values() for row in rows(True)}
    names = {"catalogue_mean_backward": "catalogue_mean and backward"}
    schemas = (schema.name.partition("::") for schema in torch._C._jit_get_all_schemas())
    ops = {
        op
        for library, _, op in schemas
        if library.startswith("fudlr") and library.removesuffix("_emulated") not in ON_THE_HOST
    }
    assert {names.get(op, op) for op in ops} <= measured
