"""Which releases of torch, transformers and peft one wheel serves: installed, checked and run.

    make compat          # or: python benchmarks/compat.py WHEEL --torch 2.10.0 2.15.0

For each torch an environment without compilers; in it the oldest and the newest transformers 5 and
peft that the wheel asks for. The wheel is installed beside them, must change none of them and pass
pip's check; then every op is held to its reference, the engine to autograd, and
`fudlr demo --small` runs. Environments are made with uv, kept in --envs, and take 5 GB a torch.
Result: results/compat.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TORCH = ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
PARTNERS = {"oldest": ("5.0.0", "0.18.0"), "newest": (">=5,<6", "")}
OPS = """
import torch
from fudlr_ext.testing import OP_CASES, check_agreement
for case in OP_CASES:
    for dtype in case.dtypes:
        for shape in (*case.small, case.shapes[0]):
            given = case.make(shape, dtype)
            check_agreement(case.op(*given), case, given)
try:
    torch.ops.fudlr.row_dots(torch.ones(2, 3), torch.ones(2, 4), None)
except ValueError:
    print(len(OP_CASES), "cases")
else:
    raise SystemExit("wrong arguments were not a ValueError")
"""
ENGINE = """
import torch
from fudlr_ext import Engine, label_logits, label_loss
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
base = LlamaForCausalLM(LlamaConfig(vocab_size=99, num_hidden_layers=2, **sizes))
model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.1)
tokens = torch.randint(99, (8, 12))
batch = {"input_ids": tokens, "labels": tokens}
engine = Engine(model)
rows = engine.sample_grads(label_logits, label_loss, batch)
losses = label_loss(label_logits(model, batch), batch)
for row, loss in zip(rows, losses):
    grads = torch.autograd.grad(loss, list(engine.parameters()), retain_graph=True)
    truth = torch.cat([x.flatten() for x in grads])
    assert (row - truth).norm() <= 1e-4 * truth.norm(), (row - truth).norm() / truth.norm()
print(tuple(rows.shape))
"""


def run(*command: str, env: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, in an environment with its own programs alone: no compiler among them."""
    around = {**os.environ, "FUDLR_QUIET": "1"}
    around.pop("PYTHONPATH", None)
    if env is not None:
        around["PATH"] = str(env / "bin")
    return subprocess.run(command, capture_output=True, text=True, check=False, env=around)


class Environment:
    """A virtual environment that uv fills."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        if not folder.exists():
            self.uv("venv", "-p", python, str(folder))

    def uv(self, *arguments: str) -> str:
        uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
        done = run(uv, *arguments)
        if done.returncode:
            raise SystemExit(f"uv {' '.join(arguments)} failed:\n{done.stderr}")
        return done.stdout

    def pip(self, command: str, *arguments: str) -> str:
        return self.uv("pip", command, "-p", str(self.folder / "bin" / "python"), *arguments)

    def install(self, *packages: str) -> None:
        self.pip("install", "--only-binary", ":all:", *packages)

    def versions(self) -> dict[str, str]:
        lines = self.pip("freeze").splitlines()
        return dict(line.split("==") for line in lines if "==" in line)

    def check(self, *arguments: str) -> dict[str, Any]:
        """Whether a command succeeds, its seconds, and its last line where it does not."""
        start = time.perf_counter()
        program = str(self.folder / "bin" / "python")
        done = run(program, *arguments, env=self.folder)
        found: dict[str, Any] = {
            "passed": done.returncode == 0,
            "seconds": round(time.perf_counter() - start, 1),
        }
        if done.returncode:
            found["said"] = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        return found


def row(wheel: Path, env: Environment, partners: str, demo: bool) -> dict[str, Any]:
    """One line of the table."""
    transformers, peft = (x if x[:1] in ("", ">") else f"=={x}" for x in PARTNERS[partners])
    kept = f"torch=={env.versions()['torch'].partition('+')[0]}"
    env.install("--upgrade", kept, f"transformers{transformers}", f"peft{peft}")
    before = env.versions()
    env.install("--reinstall-package", "fudlr-ext", f"fudlr-ext[recommender] @ {wheel.as_uri()}")
    after = env.versions()
    before.pop("fudlr-ext", None)
    out = env.folder / "demo"
    shutil.rmtree(out, ignore_errors=True)
    found = {
        **{name: after[name] for name in ("torch", "transformers", "peft")},
        "changed": {k: [v, after.get(k)] for k, v in before.items() if after.get(k) != v},
        "pip_check": env.pip("check").strip() or "clean",
        "ops": env.check("-c", OPS),
        "engine": env.check("-c", ENGINE),
    }
    if demo:
        found["demo"] = env.check("-m", "fudlr", "demo", "--small", "--out", str(out))
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="+", default=TORCH)
    parser.add_argument("--partners", nargs="+", choices=PARTNERS, default=list(PARTNERS))
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}")
    parser.add_argument("--envs", type=Path, default=Path("out/compat"))
    parser.add_argument("--no-demo", action="store_true")
    args = parser.parse_args()
    from common import RESULTS, bar, write_result  # noqa: PLC0415

    wheel, rows = args.wheel.resolve(), []
    for torch in args.torch:
        env = Environment(args.envs / f"torch-{torch}", args.python)
        env.install(f"torch=={torch}", "numpy")
        rows += [row(wheel, env, partners, not args.no_demo) for partners in args.partners]
    good = [x for x in rows if not x["changed"] and all(
        x[part]["passed"] for part in ("ops", "engine", "demo") if part in x)]  # fmt: skip
    minors = {x["torch"].rpartition(".")[0] for x in good}
    write_result(
        RESULTS / "compat.json",
        f"python benchmarks/compat.py {wheel.name} --torch {' '.join(args.torch)} "
        f"--partners {' '.join(args.partners)}",
        wheel={"name": wheel.name, "bytes": wheel.stat().st_size, "python": args.python},
        bars=[
            bar("minor releases of torch served by one wheel", len(minors), 4),
            bar("combinations with something that failed", len(rows) - len(good), 0, least=False),
        ],
        rows=rows,
    )


if __name__ == "__main__":
    main()
