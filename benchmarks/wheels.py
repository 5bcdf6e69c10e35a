"""What is in the wheels of `make wheel`: sizes, tags, and which machines their kernels are for.

    make wheel && make wheel DIST=dist/cuda WHEEL_CUDA=ON
    python benchmarks/wheels.py dist/*.whl dist/cuda/*.whl

A wheel for another kind of machine than this is looked at and not loaded. Result:
results/wheels.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

MOST = 60e6  # bytes of a wheel with GPU kernels
ASKED = """
import json
from fudlr_ext import _C
print(json.dumps({
    "devices": _C.devices(), "gpus": _C.cuda_architectures(), "isas": _C.built_isas().split(","),
}))
"""


def described(wheel: Path) -> dict[str, Any]:
    """A row: what the file says, and what the library in it says of itself."""
    library = "fudlr_ext/_C.abi3.so"
    *_, python, abi, machine = wheel.stem.split("-")
    found: dict[str, Any] = {
        "python": python, "abi": abi, "platform": machine, "bytes": wheel.stat().st_size,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ZipFile(wheel) as files:
        found["library_bytes"] = files.getinfo(library).file_size
        if machine.endswith(platform.machine()):
            files.extractall(folder)
            around = {**os.environ, "PYTHONPATH": folder}
            said = subprocess.check_output([sys.executable, "-c", ASKED], env=around, cwd=folder)
            found |= json.loads(said)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, nargs="+")
    args = parser.parse_args()
    from common import RESULTS, bar, write_result  # noqa: PLC0415

    rows = [described(wheel) for wheel in args.wheels]
    write_result(
        RESULTS / "wheels.json",
        "python benchmarks/wheels.py WHEEL ...",
        bars=[bar("largest wheel, bytes", max(x["bytes"] for x in rows), MOST, least=False)],
        wheels=rows,
    )


if __name__ == "__main__":
    main()
