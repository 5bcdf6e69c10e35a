"""The rows of benchmarks/gpu.py in small, on the CPU and, with -m gpu, on a GPU: all ways agree."""

import json
import math
import sys

import gpu
import pytest
import torch
from gpu_cases import FAMILIES, cases
from gpu_cases.measure import differences

from fudlr_ext import _C

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
RATES = {"bytes_per_second": 1e9} | {
    f"operations_per_second_torch.{name}": 1e9 for name in ("float32", "bfloat16", "float16")
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_ways_of_every_row_agree(family, device):
    if device == "cuda" and not (torch.cuda.is_available() and "cuda" in _C.devices()):
        pytest.skip("no CUDA device is at hand, or the library has no GPU kernels")
    for case in cases(family, small=True):
        ways = case.build(device)
        if device == "cpu" and case.cpu_refuses:
            with pytest.raises(ValueError, match="float32"):
                ways.timed["ours"]()
            continue
        errors, left_out = differences(case, ways.compared)
        assert not left_out, f"{case}: {left_out}"
        assert errors.keys() == ways.timed.keys() >= {"ours", "plain"}, str(case)


def test_every_op_has_rows():
    """Every schema, a backward by autograd's name for it."""
    measured = {case.op.partition(",")[0] for family in FAMILIES for case in cases(family)}
    names = {"catalogue_mean_backward": "catalogue_mean and backward"}
    schemas = (schema.name.partition("::") for schema in torch._C._jit_get_all_schemas())
    ops = {op for library, _, op in schemas if library.startswith("fudlr")}
    assert {names.get(op, op) for op in ops} <= measured


def test_a_row_is_written_and_a_wrong_answer_is_not_timed():
    case, called = next(cases("rows", small=True)), []
    row = gpu.row_of("rows", case, "cpu", RATES, lambda way: way() is None or 0.5)
    row = json.loads(json.dumps(row, allow_nan=False))
    assert row["faster_than"] == {"plain": 1.0}
    assert math.isclose(row["share_of_copy"], row["bytes"] / row["seconds"]["ours"]["median"] / 1e9)
    ways = case.build("cpu")
    ways.timed["ours"] = lambda: ways.timed["plain"]() * 1.001
    object.__setattr__(case, "build", lambda device: ways)
    row = gpu.row_of("rows", case, "cpu", RATES, called.append)
    assert row["failed"].startswith("WrongAnswer"), row
    assert not called


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RESULT", tmp_path / "gpu.json")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    assert capsys.readouterr().out == "gpu: no CUDA device is at hand, so nothing was measured\n"
    assert not list(tmp_path.iterdir())
