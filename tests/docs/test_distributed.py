"""Files for schedulers are ones that can be read, and the plan for many GPUs is its arithmetic."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml
from fudlr.cli import OVER_RANKS, app

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "distributed"
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
MEASURED = ROOT / "benchmarks" / "results" / "store_stream.json"
BASES = {  # hidden, intermediate, layers, columns of keys and values, parameters in 10⁹
    "Llama 3.2 1B": (2048, 8192, 16, 512, 1.24),
    "Llama 3.1 8B": (4096, 14336, 32, 1024, 8.03),
    "Llama 3.1 70B": (8192, 28672, 80, 1024, 70.6),
}
RANK = 16
KEPT = 0.038  # of the gradients' bytes, as the README has it for the demo
COLUMNS = 0.15  # p / d at these bytes: int8 with a scale for each 128 columns


def parameters(base: str) -> int:
    """Of a LoRA adapter on all linear layers."""
    hidden, wide, layers, keys, _ = BASES[base]
    widths = [2 * hidden, hidden + keys, hidden + keys, 2 * hidden, *3 * [hidden + wide]]
    return RANK * layers * sum(widths)


def size(count: float) -> str:
    for unit in ("kB", "MB", "GB"):
        count /= 1e3
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1e3:.3g} TB"


def plan() -> list[str]:
    """A row a base: its adapter, weights in 16 bits, and what a sample and a step take."""
    rows = []
    for base, (*_, billions) in BASES.items():
        d = parameters(base)
        row = KEPT * 4 * d
        cells = [base, f"{d / 1e6:.1f} M", size(2e9 * billions), size(row), size(4 * d)]
        cells += [size(4 * 4 * COLUMNS * d), *(size(row * n) for n in (1e6, 1e8))]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def spread() -> list[str]:
    """A row a number of GPUs, for the 8B base and 10⁶ samples of one epoch."""
    row, d = KEPT * 4 * parameters("Llama 3.1 8B"), parameters("Llama 3.1 8B")
    passes = json.loads(MEASURED.read_text(encoding="utf-8"))["request"]["passes"]
    rates = [passes[name]["gb_per_s"] for name in ("scores", "update")]
    assert f"[{rates[0]:.2f} and {rates[1]:.2f} GB/s]" in PAGE
    rows = []
    for count in (1, 8, 64):
        share = 2 * (count - 1) / count  # of a sum by a ring, sent by each
        cells = [f"{count}", size(row * 1e6 / count), size(2 * share * 4 * d) if share else "0"]
        cells += [f"{row * 1e6 / 2e9 / 60:.0f} min", size(2 * 4 * 1e6)]
        seconds = sum(row * 1e6 / count / (1e9 * rate) for rate in rates)
        cells.append(f"{seconds / 3600:.1f} h" if seconds > 3600 else f"{seconds / 60:.0f} min")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


@pytest.mark.parametrize("rows", [plan, spread])
def test_the_plan_is_its_arithmetic(rows):
    for row in rows():
        assert row in PAGE, row


def named(words: list[str]) -> None:
    """The words after `-m fudlr` are a command of several processes, with options that it has."""
    name, *rest = words[words.index("fudlr") + 1 :]
    assert name in OVER_RANKS
    command = typer.main.get_command(app).commands[name]
    command.make_context(name, rest)


def test_the_batch_script_is_a_shells():
    path = EXAMPLES / "record.slurm"
    subprocess.run([shutil.which("bash") or "bash", "-n", path], check=True)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --ntasks-per-node=1" in text
    named(text.replace("\\\n", " ").replace('"', "").splitlines()[-1].split())


def test_the_job_is_kubernetes():
    text = (EXAMPLES / "debias.k8s.yaml").read_text(encoding="utf-8")
    service, job = yaml.safe_load_all(text)
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    nodes = int(container["args"][0].partition("=")[2])
    assert spec["completions"] == spec["parallelism"] == nodes
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node={gpus}" in container["args"]
    named(container["args"])


def test_both_are_named_on_the_page():
    for path in EXAMPLES.iterdir():
        assert f"../examples/distributed/{path.name}" in PAGE


if __name__ == "__main__":
    print("\n".join([*plan(), "", *spread()]))
