"""The rows of benchmarks/gpu.py that the CPU refuses, in small, on the emulated kernels.

Prints, as JSON, how far every way was from the truth; raises where ours was too far.
"""

import json
import sys

import torch
from emulation import LIBRARIES, ROOT, load

sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_cases import FAMILIES, cases
from gpu_cases.measure import differences


def emulate() -> None:
    """Let every op be the emulated one for whoever asks torch.ops."""
    load("emulated_plain")
    for schema in torch._C._jit_get_all_schemas():
        library, _, op = schema.name.partition("::")
        if library in LIBRARIES:
            emulated = getattr(getattr(torch.ops, f"{library}_emulated"), op)
            setattr(getattr(torch.ops, library), op, emulated)


if __name__ == "__main__":
    torch.set_num_threads(1)
    emulate()
    refused = [
        case for family in FAMILIES for case in cases(family, small=True) if case.cpu_refuses
    ]
    print(
        json.dumps({str(case): differences(case, case.build("cpu").compared) for case in refused})
    )
