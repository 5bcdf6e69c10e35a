"""Which releases of torch, transformers and peft one wheel serves: installed, checked and run.

    make compat          # or: python benchmarks/compat.py WHEEL --torch 2.10.0 2.15.0

For each torch an environment without compilers; in it the oldest and the newest transformers 5 and
peft that the wheel asks for. The wheel is installed beside them, must change none of them and pass
pip's check; then every op is held to its reference, the engine to autograd, and
`fudlr demo --small` and the examples run. Environments are made with uv, kept in --envs, and take
5 GB a torch. Result: results/compat.json, whose other rows stay where they are of
the same wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from zipfile import ZipFile

TORCH = ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
PARTNERS = {"oldest": ("5.0.0", "0.18.0"), "newest": (">=5,<6", "")}
EXAMPLES = {
    "own_metric": (),
    "own_adapter": ("out",),
    "record_in_your_loop": (),
    "trainer_run": ("out",),
    "recommender": ("titles",),
}
"""Those that need neither a data set nor a base from elsewhere, with their arguments."""
ROOT = Path(__file__).resolve().parents[1]
UV = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
PARTS = ("ops", "engine", "demo", "examples")
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


def run(
    *command: str, env: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, in an environment with its own programs alone: no compiler among them."""
    around = {**os.environ, "FUDLR_QUIET": "1"}
    around.pop("PYTHONPATH", None)
    if env is not None:
        around["PATH"] = str(env / "bin")
    return subprocess.run(command, capture_output=True, text=True, check=False, env=around, cwd=cwd)


class Environment:
    """A virtual environment that uv fills."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        if not folder.exists():
            self.uv("venv", "-p", python, str(folder))

    def uv(self, *arguments: str) -> str:
        done = run(UV, *arguments)
        if done.returncode:
            raise SystemExit(f"uv {' '.join(arguments)} failed:\n{done.stderr}")
        return done.stdout

    def pip(self, command: str, *arguments: str) -> str:
        return self.uv("pip", command, "-p", str(self.folder / "bin" / "python"), *arguments)

    def python(self) -> str:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        return run(str(self.folder / "bin" / "python"), "-c", code).stdout.strip()

    def install(self, *packages: str) -> None:
        self.pip("install", "--only-binary", ":all:", *packages)

    def conflicts(self) -> str:
        """What pip's check says against the environment."""
        done = run(UV, "pip", "check", "-p", str(self.folder / "bin" / "python"))
        return done.stderr.strip() if done.returncode else ""

    def versions(self) -> dict[str, str]:
        lines = self.pip("freeze").splitlines()
        return dict(line.split("==") for line in lines if "==" in line)

    def check(self, *commands: tuple[str, ...]) -> dict[str, Any]:
        """Whether commands succeed, their seconds, and the last line of the first that does not."""
        found: dict[str, Any] = {"passed": True}
        start = time.perf_counter()
        for arguments in commands:
            shutil.rmtree(self.folder / "work", ignore_errors=True)
            (self.folder / "work").mkdir()
            program = str(self.folder / "bin" / "python")
            done = run(program, *arguments, env=self.folder, cwd=self.folder / "work")
            if done.returncode:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
                found = {"passed": False, "command": Path(arguments[0]).name, "said": said}
                break
        return {**found, "seconds": round(time.perf_counter() - start, 1)}


def row(wheel: Path, env: Environment, partners: str) -> dict[str, Any]:
    """One line of the table."""
    transformers, peft = (x if x[:1] in ("", ">") else f"=={x}" for x in PARTNERS[partners])
    kept = f"torch=={env.versions()['torch'].partition('+')[0]}"
    env.install("--upgrade", kept, f"transformers{transformers}", f"peft{peft}")
    before = env.versions()
    env.install("--reinstall-package", "fudlr-ext", f"fudlr-ext[datasets] @ {wheel.as_uri()}")
    after = env.versions()
    before.pop("fudlr-ext", None)
    examples = [
        (str(ROOT / "examples" / f"{name}.py"), *arguments) for name, arguments in EXAMPLES.items()
    ]
    return {
        **{name: after[name].partition("+")[0] for name in ("torch", "transformers", "peft")},
        "partners": partners,
        "python": env.python(),
        "changed": {k: [v, after.get(k)] for k, v in before.items() if after.get(k) != v},
        "pip_check": env.conflicts() or "clean",
        "ops": env.check(("-c", OPS)),
        "engine": env.check(("-c", ENGINE)),
        "demo": env.check(("-m", "fudlr", "demo", "--small", "--out", "demo")),
        "examples": env.check(*examples),
    }


def passed(found: dict[str, Any]) -> bool:
    """Whether nothing was changed, nothing conflicts and everything ran."""
    clean = not found["changed"] and found["pip_check"] == "clean"
    return clean and all(found[part]["passed"] for part in PARTS)


def key(found: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same row: newest releases first."""
    numbers = [-int(x) for x in found["torch"].split(".")[:2]]
    return (*numbers, found["partners"], found["python"])


def contents(wheel: Path) -> str:
    """A digest of the code in a wheel, without its metadata and times."""
    with ZipFile(wheel) as files:
        listed = sorted((x.filename, x.CRC) for x in files.infolist())
    code = [x for x in listed if ".dist-info/" not in x[0]]
    return hashlib.sha256(repr(code).encode()).hexdigest()


def write(wheel: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table with these rows, and those that it had of the same wheel."""
    from common import RESULTS, bar, write_result  # noqa: PLC0415

    path, digest = RESULTS / "compat.json", contents(wheel)
    earlier = json.loads(path.read_text()) if path.exists() else {"wheel": {}, "rows": []}
    if earlier["wheel"].get("contents") == digest:
        rows = list({key(x): x for x in (*earlier["rows"], *rows)}.values())
    rows.sort(key=key)
    good = [x for x in rows if passed(x)]
    write_result(
        path,
        "python benchmarks/compat.py WHEEL",
        wheel={"name": wheel.name, "bytes": wheel.stat().st_size, "contents": digest},
        bars=[
            bar(
                "minor releases of torch served by one wheel",
                len({x["torch"].rpartition(".")[0] for x in good}),
                4,
            ),
            bar("combinations with something that failed", len(rows) - len(good), 0, least=False),
        ],
        rows=rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="+", default=TORCH)
    parser.add_argument("--partners", nargs="+", choices=PARTNERS, default=list(PARTNERS))
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}")
    parser.add_argument("--envs", type=Path, default=Path("out/compat"))
    args = parser.parse_args()
    wheel = args.wheel.resolve()
    for torch in args.torch:
        name = f"torch-{torch}-python-{Path(args.python).name.removeprefix('python')}"
        env = Environment(args.envs.resolve() / name, args.python)
        env.install(f"torch=={torch}", "numpy")
        for partners in args.partners:
            found = row(wheel, env, partners)
            print(found, flush=True)
            write(wheel, [found])


if __name__ == "__main__":
    main()
