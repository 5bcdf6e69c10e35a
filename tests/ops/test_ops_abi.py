"""The library keeps to the stable ABIs of torch and Python, declared as torch declares its own."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fudlr_ext import _C

ROOT = Path(__file__).resolve().parents[2]
OURS = (ROOT / "csrc/abi/torch_c.h").read_text()
THEIRS = """
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
"""
DECLARED = re.findall(r"(?:AOTITorchError|size_t|int32_t) (\w+)\(", OURS)


def compiled(ours: str) -> subprocess.CompletedProcess:
    """Compile torch's declarations and ours as one file: C functions may have one type alone."""
    own = ours.replace("#pragma once", "")
    return subprocess.run(
        [shutil.which("c++") or "g++", "-std=c++20", "-fsyntax-only", "-x", "c++", "-",
         "-DTORCH_TARGET_VERSION=0x020a000000000000",
         f"-I{Path(torch.__file__).parent / 'include'}"],
        input=THEIRS + own, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_torch_declares_the_same_for_2_10():
    done = compiled(OURS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("was", "wrong"),
    [
        ("aoti_torch_zero_(AtenTensorHandle self)", "aoti_torch_zero_(int64_t self)"),
        ("int64_t begin, int64_t end, int64_t grain", "int64_t begin, int64_t end, int32_t grain"),
    ],
)  # fmt: skip
def test_another_declaration_is_seen(was, wrong):
    assert was in OURS
    done = compiled(OURS.replace(was, wrong))
    assert "conflicting declaration" in done.stderr


def test_nothing_else_of_torch_is_asked_for():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    listed = subprocess.run(
        [nm, "-D", "--undefined-only", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    wanted = {line.split()[-1].partition("@")[0] for line in listed.splitlines()}
    of_torch = {name for name in wanted if re.search("torch|c10|N2at", name)}
    assert of_torch
    assert of_torch <= set(DECLARED)


def test_the_library_is_for_every_python():
    assert Path(_C.__file__).name == "_C.abi3.so"
