"""Malformed files of every folder that a command reads, drawn with a seed, and what comes of them.

`tests/fudlr/commands/test_malformed.py` tries some, `benchmarks/malformed.py` thousands.
"""

import contextlib
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import fudlr
import yaml
from fudlr import RunConfig, cli, train_run, write_result
from fudlr.common.errors import FudlrError
from fudlr.config import merge
from typer.testing import CliRunner
from written import SMALL

TINY = {**SMALL, "model.layers": 1, "debias.damping": 0.1, "debias.force": True}
ODD = [None, True, -1, 0, 2**70, 1e308, "", "\x1b[31m", "../../etc/passwd", [], {}, [[]], [None],
       {"a": {"b": []}}, "NaN", 1.5, "a" * 10_000]  # fmt: skip
REACHED = "the whole way"
SECONDS = 60


def _reach(*_: object, **__: object) -> None:
    """In place of long work: the input was taken."""
    raise FudlrError("a case was tried", REACHED, "None")


class Outcome(NamedTuple):
    """What one case gave."""

    case: str
    code: int
    words: str
    wrong: list[str]


def make(folder: Path) -> None:
    """A run, a result of it, figures, a configuration and data, all sound."""
    run = train_run(merge(RunConfig(), TINY), folder / "run")
    write_result(folder / "result", fudlr.debias(run, objective="arp", curve=(), heldout=False))
    (folder / "figures.json").write_text(json.dumps({"arp": 0.5, "ndcg@5": 0.1}))
    (folder / "config.yaml").write_text((folder / "run" / "config.yaml").read_text())
    shutil.copytree(folder / "run" / "adapter", folder / "adapter")
    shutil.copytree(folder / "run" / "base", folder / "base")


TARGETS = {
    "result/summary.json": ("export", "push", "verify", "replace"),
    "result/mask.parquet": ("export", "verify"),
    "result/curve.json": ("verify", "export"),
    "result/config.yaml": ("verify",),
    "result/.fudlr.json": ("replace",),
    "result/adapter/adapter_config.json": ("push", "verify"),
    "result/adapter/adapter_model.safetensors": ("verify",),
    "run/binding.json": ("evaluate",),
    "run/train.json": ("evaluate",),
    "run/recommender.json": ("evaluate",),
    "run/config.yaml": ("evaluate",),
    "run/.fudlr.json": ("train",),
    "run/base/config.json": ("evaluate",),
    "run/start/adapter_config.json": ("evaluate",),
    "adapter/adapter_config.json": ("adapter",),
    "adapter/adapter_model.safetensors": ("adapter",),
    "base/config.json": ("base",),
    "base/model.safetensors": ("base",),
    "figures.json": ("check",),
    "config.yaml": ("configured",),
}


def arguments(command: str, at: Path) -> list[str]:
    """What is called for a case."""
    return {
        "export": ["export", at / "result", "--out", at / "new.jsonl", "--run", at / "run"],
        "push": ["push", at / "result", "name", "--base", "maker/model"],
        "verify": ["verify", at / "result", "--run", at / "run"],
        "replace": ["debias", at / "run", "--out", at / "result", "--budget", "0.02"],
        "evaluate": ["evaluate", at / "run"],
        "train": ["train", "--out", at / "run", "--data", "synthetic", "--overwrite"],
        "adapter": ["evaluate", at / "run", "--adapter", at / "adapter"],
        "base": ["train", "--out", at / "new", "--data", "synthetic", "--base", at / "base",
                 "--set", "lora.rank=2", "--set", "data.k=5"],
        "check": ["check", at / "run", "--baseline", at / "figures.json", "--max", "arp=+2%"],
        "configured": ["train", "--out", at / "new", "--config", at / "config.yaml"],
    }[command]  # fmt: skip


LONG_WORK = ("fudlr.verify.result.verify_case", "fudlr.evaluation.measure", "fudlr.debias.debias",
             "fudlr.run.folder.train_adapter", "fudlr.run.base.pretrain",
             "huggingface_hub.HfApi")  # fmt: skip


def damage(path: Path, rng: random.Random) -> str:
    """Make a file odd in one way; returns which."""
    raw = path.read_bytes()
    ways = ["empty", "cut", "bits", "noise", "gone", "folder", "fifo", "link", "utf16"]
    if path.suffix in (".json", ".yaml"):
        ways += ["value"] * 6 + ["key", "twice", "deep", "nan", "surrogate", "aliases", "list"]
    way = rng.choice(ways)
    structured = path.suffix in (".json", ".yaml")
    text = raw.decode() if structured else ""
    loaded = (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)) if text else {}
    dump = json.dumps if path.suffix == ".json" else yaml.safe_dump
    new: bytes | None = None
    if way == "value":
        way = f"{way} {_odd_value(loaded, rng)}"
        new = dump(loaded).encode()
    elif way == "key":
        new = dump(
            {k: loaded[k] for k in list(loaded)[1:]} if isinstance(loaded, dict) else {}
        ).encode()
    else:
        new = {
            "empty": b"",
            "cut": raw[: rng.randrange(len(raw))],
            "bits": bytes(b ^ (rng.random() < 0.01) * 1 << rng.randrange(8) for b in raw),
            "noise": rng.randbytes(200),
            "utf16": b"\xff\xfe" + raw[:50],
            "twice": raw + raw,
            "deep": b"[" * 100_000,
            "nan": text.replace(":", ": NaN,", 1).encode() if text else raw,
            "surrogate": b'{"a": "\\ud800"}',
            "aliases": ALIASES.encode(),
            "list": b"[1, 2]",
        }.get(way)
    path.unlink()
    if new is not None:
        path.write_bytes(new)
    elif way == "folder":
        path.mkdir()
    elif way == "fifo":
        os.mkfifo(path)
    elif way == "link":
        path.symlink_to(path)
    return way


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


def _odd_value(loaded: object, rng: random.Random) -> str:
    """Put an odd value somewhere into `loaded`; returns where."""
    places: list[tuple[object, object, str]] = []

    def walk(value: object, name: str) -> None:
        inner = value.items() if isinstance(value, dict) else enumerate(value[:3])
        for key, below in inner:
            places.append((value, key, f"{name}/{key}"))
            if isinstance(below, (dict, list)):
                walk(below, f"{name}/{key}")

    walk(loaded, "")
    if not places:
        loaded.append(rng.choice(ODD))
        return f"={loaded!r:.20}"
    parent, key, name = rng.choice(places)
    parent[key] = rng.choice(ODD)
    return f"{name}={str(parent[key])[:20]!r}"


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every name below a folder, and what regular files hold."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def try_case(sound: Path, work: Path, seed: int) -> Outcome:
    """Damage a copy of what `make` wrote, and call a command on it."""
    rng = random.Random(seed)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sound, work)
    name = rng.choice(sorted(TARGETS))
    command = rng.choice(TARGETS[name])
    case = f"{seed}: {command} with {name}: {damage(work / name, rng)}"
    before = snapshot(work)
    with contextlib.ExitStack() as stack:
        for target in LONG_WORK:
            stack.enter_context(mock.patch(target, _reach))
        with _time_limit():
            result = CliRunner().invoke(cli.app, [str(a) for a in arguments(command, work)])
    error, wrong = result.exception, []
    expected = error is None or isinstance(error, SystemExit) or cli.is_expected(error)
    words = str(error) if error is not None else result.output
    if not expected:
        wrong.append(f"unexpected {error!r}")
    if "was not expected" in words:
        wrong.append("an error without words of its own")
    if "\x1b" in words and "\x1b" not in fudlr.common.terminal.visible(words):
        words = fudlr.common.terminal.visible(words)
    after = snapshot(work)
    lost = [n for n, content in before.items() if n not in after or after[n] != content]
    if lost:
        wrong.append(f"changed {lost[:3]}")
    left = [n for n in after if n not in before and n != "new.jsonl"]
    if left:
        wrong.append(f"left {left[:3]}")
    if command == "export" and result.exit_code == 0 and not _weights_are_right(work):
        wrong.append("misread")
    code = cli.exit_code(error) if isinstance(error, FudlrError) else result.exit_code
    return Outcome(case, code, words, wrong)


def _weights_are_right(work: Path) -> bool:
    """Whether the exported weights are those that another library reads in the mask."""
    import pyarrow.parquet

    mask = pyarrow.parquet.read_table(work / "result" / "mask.parquet")["mask"].to_pylist()
    rows = [json.loads(line) for line in (work / "new.jsonl").read_text().splitlines()]
    return [row["weight"] for row in rows] == [1 - value for value in mask]
