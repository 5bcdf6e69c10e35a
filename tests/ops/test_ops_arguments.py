"""Wrong arguments are refused with what was asked, what was found and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fudlr_ext
from fudlr_ext import _C, _library, ops
from fudlr_ext._library import check_torch, load
from fudlr_ext.testing import OP_CASES, Shape

SHAPE = Shape((2, 1, 3), 4, 5, 2)
PACKED = [case for case in OP_CASES if case.packed]


def change(case, **changes):
    left, right, *rest, offsets = case.make(SHAPE, torch.float32)
    given = {"left": left, "right": right, "offsets": offsets}
    given.update({name: alter(given[name]) for name, alter in changes.items() if name != "last"})
    if "last" in changes:
        rest = [x if x is None else changes["last"](x) for x in rest]
    return given["left"], given["right"], *rest, given["offsets"]


WRONG = {
    "must be packed": {"left": lambda x: x[None, None]},
    "same positions": {"left": lambda x: x[:-1]},
    "left must be float32": {"left": torch.Tensor.half},
    "one dtype": {"right": torch.Tensor.double},
    r"int64 of shape \[n \+ 1\]": {"offsets": torch.Tensor.int},
    "shape is|they are Long of shape": {"offsets": lambda x: x[:0]},
    "0 to 6, the number of positions": {"offsets": lambda x: x + 1},
    "offsets must lie": {"offsets": lambda x: x - 1},
    r"offsets\[1\] is 5 and offsets\[2\] is 3": {"offsets": lambda x: torch.tensor([0, 5, 3, 6])},
    "on one device": {"right": lambda x: x.to("meta")},
    "left is on cpu, offsets on meta": {"offsets": lambda x: x.to("meta")},
}


@pytest.mark.parametrize("case", PACKED, ids=str)
@pytest.mark.parametrize("message", WRONG)
def test_factors(case, message):
    with pytest.raises(ValueError, match=message) as caught:
        ops.OPS[case.name](*change(case, **WRONG[message]))
    said = str(caught.value).splitlines()[0]
    assert said.startswith(f"{case.name}: ")
    assert said.count(": ") >= 2


WRONG_LAST = {
    "at the end": lambda x: x[..., :-1],
    "must be Float": torch.Tensor.double,
    "Reshape them": lambda x: x[0],
    "on one device": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("case", [case for case in PACKED if len(case.differentiable) > 2], ids=str)
@pytest.mark.parametrize("message", WRONG_LAST)
def test_vectors_and_weights(case, message):
    with pytest.raises(ValueError, match=message):
        ops.OPS[case.name](*change(case, last=WRONG_LAST[message]))


def test_bfloat16_wants_float32_vectors():
    case = OP_CASES[1]
    left, right, vectors, offsets = case.make(SHAPE, torch.bfloat16)
    with pytest.raises(ValueError, match="must be Float where left is BFloat16"):
        ops.sample_dots(left, right, vectors.bfloat16(), offsets)


def test_padded_samples_need_fitting_offsets():
    left, right = torch.randn(3, 4, 2), torch.randn(3, 4, 5)
    with pytest.raises(fudlr_ext.EngineError, match="for 3 padded samples"):
        ops.sample_grads(left, right, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="the number of positions"):
        ops.sample_grads(left, right, torch.tensor([0, 1, 2, 9]))


def test_unknown_instruction_set_is_refused():
    before = _C.isa()
    with pytest.raises(ValueError, match="'sse9' was asked for: there is none"):
        _C.set_isa("sse9")
    assert _C.isa() == before


def test_environment_chooses_the_instruction_set():
    def run(isa):
        return subprocess.run(
            [sys.executable, "-c", "import fudlr_ext; print(fudlr_ext._C.isa())"],
            env={**os.environ, "FUDLR_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("portable").stdout.strip() == "portable"
    wrong = run("sse9")
    assert wrong.returncode != 0
    assert "ImportError" in wrong.stderr
    assert "unset FUDLR_ISA" in wrong.stderr


@pytest.mark.parametrize("found", ["2.10.0", "2.15.1+cu130", "3.0.0a0+git1234", "unknown"])
def test_a_torch_of_the_range_is_taken(found):
    check_torch(found)


@pytest.mark.parametrize("found", ["2.9.1+cpu", "1.13.0"])
def test_an_older_torch_is_refused(found):
    with pytest.raises(ImportError, match=r"needs torch 2\.10 or later. Run `pip install 'torch>"):
        check_torch(found)


def test_missing_library_says_what_to_run(monkeypatch):
    monkeypatch.setattr(_library, "FILE", Path("/nowhere/_C.abi3.so"))
    with pytest.raises(ImportError, match=r"compiled library is missing. Run `pip install"):
        load()
