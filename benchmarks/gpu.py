"""The GPU kernels on layers of Llama's 1B and 7B models, against plain PyTorch and the limits.

    FUDLR_CUDA=ON pip install --no-build-isolation -e ".[test]" && python benchmarks/gpu.py

Writes results/gpu.json. For every layer, rank and dtype: products of all per-sample gradients with
eight vectors, the gradients themselves, and their weighted sum; beside them the same in plain
PyTorch (the gradients as one batched product, then their use), with torch.func's vmap(grad), and
one sample at a time. Answers are compared before anything is timed; medians of interleaved repeats.
Rates count the bytes and operations that must be moved and done, and stand beside a measured copy
and a measured matrix product. Without a GPU it says so and measures nothing.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from fudlr.files import write_json
from machine import describe

from fudlr_ext import _C, ops

RESULT = Path(__file__).resolve().parent / "results" / "gpu.json"

# (name, wide side of the LoRA matrix): hidden size and the feed-forward size.
LAYERS = (("1B hidden", 2048), ("1B feed-forward", 8192), ("7B hidden", 4096), ("7B ff", 11008))
RANKS = (8, 16, 64)
DTYPES = (torch.float32, torch.bfloat16)
SAMPLES, POSITIONS, VECTORS = 32, 256, 8


def seconds(run, repeats=15):
    """Medians of several functions' times, in turn; each is warmed up first."""
    times = {name: [] for name in run}
    for function in run.values():
        for _ in range(3):
            function()
    for _ in range(repeats):
        for name, function in run.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
    return {
        name: {"median": statistics.median(t), "least": min(t), "most": max(t)}
        for name, t in times.items()
    }


def limits():
    """Bytes a second of a copy, and operations a second of a matrix product."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    found = {}
    copied = seconds({"copy": lambda: target.copy_(source)})["copy"]["median"]
    found["bytes_per_second"] = 2 * source.nbytes / copied
    for dtype in DTYPES:
        a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        product = seconds({"product": lambda a=a: a @ a}, 5)["product"]["median"]
        found[f"operations_per_second_{dtype}"] = 2 * 8192**3 / product
    return found


def rivals(left, right, vectors, weights):
    """Functions for every op and way of doing it, on the same work."""
    n, t = SAMPLES, POSITIONS
    a, b = left.view(n, t, -1), right.view(n, t, -1)
    offsets = torch.arange(n + 1, device="cuda") * t
    flat = vectors.flatten(1).t()

    def batched():
        return torch.bmm(a.transpose(1, 2), b).float()

    def loss(matrix, one_a, one_b):  # its gradient in the matrix is G_i
        return ((one_b @ matrix.t()) * one_a).sum()

    matrix = torch.zeros(left.shape[1], right.shape[1], device="cuda", dtype=left.dtype)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def one_by_one(use):
        return torch.cat([use((x.t() @ y).float()[None]) for x, y in zip(a, b, strict=True)])

    def dot(grads):
        return grads.flatten(1) @ flat

    return {
        "sample_dots": {
            "ours": lambda: ops.sample_dots(left, right, vectors, offsets),
            "plain": lambda: dot(batched()),
            "vmap(grad)": lambda: dot(per_sample(matrix, a, b).float()),
            "batch of one": lambda: one_by_one(dot),
        },
        "sample_grads": {
            "ours": lambda: ops.sample_grads(left, right, offsets),
            "plain": batched,
            "vmap(grad)": lambda: per_sample(matrix, a, b).float(),
        },
        "grad_sum": {
            "ours": lambda: ops.grad_sum(left, right, weights, offsets),
            "plain": lambda: torch.einsum("wn,nab->wab", weights, batched()),
        },
    }


def work(op, rank, wide, itemsize):
    """Bytes that must be moved and operations that must be done."""
    positions, matrix = SAMPLES * POSITIONS, rank * wide
    inputs = positions * (rank + wide) * itemsize
    operations = 2 * positions * matrix
    if op == "sample_dots":
        outputs = 4 * VECTORS * (matrix + SAMPLES)
        return inputs + outputs, operations + 2 * SAMPLES * VECTORS * matrix
    return inputs + 4 * matrix * (SAMPLES if op == "sample_grads" else 1), operations


def measure(name, wide, rank, dtype, found):
    torch.manual_seed(0)
    rows = SAMPLES * POSITIONS
    left = torch.randn(rows, rank, device="cuda").to(dtype)
    right = torch.randn(rows, wide, device="cuda").to(dtype)
    vectors = torch.randn(VECTORS, rank, wide, device="cuda")
    weights = torch.randn(1, SAMPLES, device="cuda")
    for op, ways in rivals(left, right, vectors, weights).items():
        truth = ways["plain"]().double()
        error = ((ways["ours"]().double() - truth).norm() / truth.norm()).item()
        if not error < (1e-2 if dtype == torch.bfloat16 else 1e-4):
            sys.exit(
                f"gpu: {op} on {name}, rank {rank}, {dtype} differs from PyTorch by {error:.1e}"
            )
        times = seconds(ways)
        moved, done = work(op, rank, wide, left.element_size())
        ours = times["ours"]["median"]
        yield {
            "op": op, "layer": name, "wide": wide, "rank": rank, "dtype": str(dtype),
            "seconds": times, "relative_difference": error,
            "bytes_per_second": moved / ours, "operations_per_second": done / ours,
            "share_of_copy": moved / ours / found["bytes_per_second"],
            "share_of_product": done / ours / found[f"operations_per_second_{dtype}"],
            "faster_than": {way: t["median"] / ours for way, t in times.items() if way != "ours"},
        }  # fmt: skip


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not torch.cuda.is_available():
        print("gpu: no CUDA device is at hand, so nothing was measured")
        return
    if "cuda" not in _C.devices():
        sys.exit("gpu: the library has no GPU kernels. Build it with FUDLR_CUDA=ON")
    torch.backends.cuda.matmul.allow_tf32 = False
    found = limits()
    results = []
    for name, wide in LAYERS:
        for rank in RANKS:
            for dtype in DTYPES:
                for row in measure(name, wide, rank, dtype, found):
                    results.append(row)
                    print(
                        f"{row['op']:13} {name:15} r{rank:<3} {str(dtype)[6:]:9} "
                        f"{row['share_of_copy']:5.0%} of copy, {row['share_of_product']:5.0%} of "
                        f"product, {row['faster_than']['plain']:.2f}x plain PyTorch"
                    )
    properties = torch.cuda.get_device_properties(0)
    gpu = {"name": properties.name, "bytes": properties.total_memory}
    write_json(
        RESULT,
        {
            "command": "python benchmarks/gpu.py", "machine": describe(), "gpu": gpu,
            "samples": SAMPLES, "positions": POSITIONS, "vectors": VECTORS,
            "limits": found, "results": results,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
