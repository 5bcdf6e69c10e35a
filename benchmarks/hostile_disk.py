"""Every command that writes, on disks that are full or read-only, killed, and interrupted.

    python benchmarks/hostile_disk.py [--kills 100] [--seed 0] [--commands train,verify] [--add]

A command replaces or continues earlier work on a disk of its own (tmpfs, in a private mount
namespace of `unshare`, which needs no rights), under one of:

- `full`: some share of the space that it needs is free;
- `read-only`: the disk is, from the start or from a random moment; or permission is denied;
- `output`: stdout is a full device;
- `interrupt`: SIGINT, SIGTERM or SIGHUP at a random moment;
- `kill`: SIGKILL at a random moment.

Afterwards every file of before is the earlier or the new one, a folder written as one is wholly
either, the command said one line of what is wrong and what to do, and left nothing else; but what
was written when the process was killed, or the disk became read-only, may lie there, and a training
whose disk fills up may go on without its store, as it says. Then the command runs again
undisturbed, and must give what it gives without a disturbance: files byte for byte, reports and
figures without their seconds.
Writes benchmarks/results/hostile_disk.json.
"""

import argparse
import collections
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from common import RESULTS, bar, write_result
from fudlr.cli.boundary import QUIET, quieten
from hostile_processes import Ended, disk, free, run, running
from pyarrow import parquet  # forked processes have no threads of polars
from safetensors import safe_open

TINY = {
    "data.source": "synthetic", "data.k": 5, "data.max_train_per_user": 2,
    "data.prompt_users": 60, "model.hidden": 16, "model.layers": 1,
    "model.heads": 2, "model.kv_heads": 1, "model.pretrain_epochs": 1,
    "train.epochs": 2, "lora.rank": 2, "debias.force": True,
}  # fmt: skip
SET = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
TIMED = re.compile(r"seconds|cost$|^share_of_training$|^train\.json$")
"""Entries that are spans of time, and the digest of a file that has some."""
LEFT = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


class Command(NamedTuple):
    """How a command is called, in its disk's folder.

    Attributes:
        arguments: What follows `fudlr`.
        whole: The folder that it writes as one.
        growing: A folder whose unfinished state it goes on from.
    """

    arguments: list[str]
    whole: str = ""
    growing: str = ""


COMMANDS = {
    "train": Command(["train", "--out", "run", "--overwrite", "--record", *SET, "--seed", "1"],
                     "run"),
    "record": Command(["record", "bare"], growing="bare/store"),
    "debias": Command(["debias", "run", "--out", "result", "--budget", "0.05"], "result"),
    "sweep": Command(["sweep", "run", "--out", "sweep", "--budget", "0.05,0.1", "--measure",
                      "--retrain", "1", "--processes", "1"], growing="sweep/points"),
    "grouped": Command(["grouped", "run", "--out", "groups", "--by", "gender"], "groups"),
    "verify": Command(["verify", "result", "--seeds", "1", "--processes", "1"]),
    "compare": Command(["compare", "run", "--out", "compared", "--rival", "popularity penalty",
                        "--processes", "1"]),
    "evaluate": Command(["evaluate", "run", "--out", "figures.json"]),
    "export parquet": Command(["export", "result", "--out", "w.parquet", "--overwrite"]),
    "export jsonl": Command(["export", "result", "--out", "w.jsonl", "--overwrite"]),
    "export folder": Command(["export", "result", "--out", "weights"], "weights"),
    "store merge": Command(["store", "merge", "run/store", "--out", "merged"], "merged"),
}  # fmt: skip
EARLIER = ("debias", "sweep", "grouped", "compare", "evaluate", "export parquet", "export jsonl",
           "export folder")  # fmt: skip
"""Commands whose earlier results, of another budget, are on the disk."""


def plain_content(path: Path) -> object:
    """What of a file does not depend on how long anything took."""
    if path.suffix == ".json":
        return untimed(json.loads(path.read_bytes()))
    if path.suffix == ".parquet":
        table = parquet.read_table(path, use_threads=False).to_pydict()
        return untimed(table)
    if path.suffix in (".html", ".md", ".svg"):
        return re.sub(r"\d[\d.,]*( (s|ms|min|h)\b)?", "#", path.read_text())
    if path.suffix == ".safetensors" and path.parent.name == "retrainings":
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name).tolist() for name in names}
    return path.read_bytes()


def untimed(value: object) -> object:
    """JSON without the entries that are spans of time."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not TIMED.search(k)}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, object]:
    """Every file below `folder`."""
    names = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): plain_content(p) for p in names if p.name != ".lock"}


class Case(NamedTuple):
    """A command with what is on its disk before and, undisturbed, after; and what it needs."""

    name: str
    command: Command
    scene: Path
    before: dict[str, object]
    after: dict[str, object]
    need: int
    seconds: float


def case_of(name: str, scene: Path) -> Case:
    """Run the command undisturbed."""
    command = COMMANDS[name]
    with disk(scene) as place:
        before, start_free, least = contents(place), free(place), [free(place)]

        def watch(child: int) -> None:
            while running(child):
                least.append(free(place))
                time.sleep(0.001)

        ended = run(command.arguments, place, watch)
        if ended.code:
            raise RuntimeError(f"{name} failed undisturbed: {ended}")
        seconds = run_again(name, command, scene)
        need = start_free - min(least)
        return Case(name, command, scene, before, contents(place), need, seconds)


def run_again(name: str, command: Command, scene: Path) -> float:
    """Seconds that the command takes, without the watching."""
    with disk(scene) as place:
        return run(command.arguments, place).seconds


def without_store(files: dict[str, object]) -> dict[str, object]:
    """A run but for its store, and the files that tell of it."""
    tell = ("run/store/", "run/.fudlr.json", "run/train.json")
    return {name: value for name, value in files.items() if not name.startswith(tell)}


def wrong_files(case: Case, place: Path, *, may_leave: bool) -> list[str]:
    """What a disturbed command did to the files that it should not have."""
    now, wrong, command = contents(place), [], case.command
    if case.name == "train" and "run/store/manifest.json" not in now:
        return [] if without_store(now) == without_store(case.after) else ["a run in parts"]
    growing = command.growing and f"{command.growing}/"
    for name in sorted({*case.before, *now}):
        if growing and name.startswith(growing):
            continue
        if name not in now:
            if name in case.after or not command.whole:
                wrong.append(f"lost {name}")
        elif now[name] not in (case.before.get(name, ...), case.after.get(name, ...)):
            left = any(LEFT.fullmatch(part) for part in Path(name).parts)
            left |= ".merged.merging" in name
            if not (may_leave and left):
                wrong.append(("left " if left else "changed ") + name)
    if command.whole:
        part = {n: v for n, v in now.items() if n.startswith(command.whole + "/")}
        for state in (case.before, case.after):
            if part == {n: v for n, v in state.items() if n.startswith(command.whole + "/")}:
                break
        else:
            wrong.append(f"{command.whole} is half the earlier one, half the new")
    return wrong


def wrong_words(ended: Ended, *, failed: bool) -> list[str]:
    """What is amiss in what a command said; `failed`: it must have."""
    lines = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        return [f"a traceback: {ended.err[-300:]}"]
    if not failed and ended.code == 0:
        return []
    if ended.code != 1:
        return [f"exit code {ended.code}: {ended.err[-200:]}"]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return [f"not one line of words: {ended.err[-300:]}"]
    if "was not expected" in lines[0] or "damaged" in lines[0]:
        return [f"words that do not help: {lines[0]}"]
    return []


def again(case: Case, place: Path) -> list[str]:
    """Run the command undisturbed on what a disturbed one left; not where that is what was there
    before, on which it has run."""
    arguments = case.command.arguments
    if contents(place) == case.before:
        return []
    if case.name == "store merge" and (place / "merged").exists():
        return []  # it was over before the disturbance
    ended = run(arguments, place)
    if ended.code:
        return [f"the next run fails: {ended.err[-300:]}"]
    now = contents(place)
    names = [n for n in sorted({*now, *case.after}) if now.get(n, ...) != case.after.get(n, ...)]
    return [f"the next run differs in {names[:3]}"] if names else []


def full(case: Case, place: Path, chance: random.Random, share: float) -> list[str]:
    take, target = max(free(place) - int(share * case.need), 4096), place / "filler"
    with target.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, take)
    ended = run(case.command.arguments, place)
    target.unlink()
    # The need was watched from outside, and the command may get by with a little less.
    return wrong_words(ended, failed=case.need > 0 and share < 0.5)


def read_only(case: Case, place: Path, chance: random.Random, when: str) -> list[str]:
    def remount(way: str) -> bool:
        words = ["mount", "-o", f"remount,{way}", str(place)]
        return not subprocess.run(words, capture_output=True, check=False).returncode

    def during(child: int) -> None:
        time.sleep(chance.uniform(0, case.seconds))
        while running(child) and not remount("ro"):
            time.sleep(0.001)

    if when == "permission":
        modes = [(p, p.stat().st_mode) for p in (place, *place.rglob("*"))]
        for path, mode in modes:
            path.chmod(mode & ~0o222)
        ended = run(case.command.arguments, place, plain=True)
        for path, mode in modes:
            path.chmod(mode)
        return wrong_words(ended, failed=True)
    if when == "at first":
        remount("ro")
        ended = run(case.command.arguments, place)
    else:
        ended = run(case.command.arguments, place, during)
    remount("rw")
    return wrong_words(ended, failed=when == "at first")


def output(case: Case, place: Path, chance: random.Random, kind: str) -> list[str]:
    ended = run(case.command.arguments, place, out="/dev/full")
    return wrong_words(ended, failed=False)


def interrupt(case: Case, place: Path, chance: random.Random, kind: str) -> list[str]:
    def during(child: int) -> None:
        time.sleep(chance.uniform(0, case.seconds))
        os.kill(child, getattr(signal, kind))

    ended = run(case.command.arguments, place, during)
    if ended.code == 0:
        return []
    if ended.code == SIGNALS[kind] and "nothing is half-written" in ended.err:
        return wrong_words(ended._replace(code=0), failed=False)
    return [f"{kind}: exit code {ended.code}: {ended.err[-300:]}"]


def kill(case: Case, place: Path, chance: random.Random, kind: str) -> list[str]:
    def during(child: int) -> None:
        time.sleep(chance.uniform(0, case.seconds))
        os.kill(child, signal.SIGKILL)

    ended = run(case.command.arguments, place, during)
    return [] if ended.code in (0, -signal.SIGKILL) else [f"exit code {ended.code}: {ended.err}"]


DISTURBANCES = [
    *(("full", full, share) for share in (0.0, 0.3, 0.8)),
    *(("read-only", read_only, when) for when in ("at first", "later", "permission")),
    ("output", output, "stdout"),
    *(("interrupt", interrupt, kind) for kind in SIGNALS),
]


def scene_of(scene: Path) -> None:
    """Earlier work: runs, and results of another budget than the commands ask for."""
    scene.mkdir()
    calls = [["train", "--out", "run", *SET], ["train", "--out", "bare", *SET, "--no-record"]]
    for name in EARLIER:
        words = COMMANDS[name].arguments
        calls.append(["0.1" if word in ("0.05", "0.05,0.1") else word for word in words])
    with disk(scene) as place:
        for arguments in calls:
            ended = run(arguments, place)
            if ended.code:
                raise RuntimeError(f"{arguments} failed: {ended}")
        shutil.copytree(place, scene, dirs_exist_ok=True)


def main() -> None:
    """Make the scene, disturb every command, kill, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--only", default="", help="one disturbance alone")
    parser.add_argument("--add", action="store_true", help="to the commands that were tried before")
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile_disk.json")
    asked = parser.parse_args()
    if os.environ.get("FUDLR_PRIVATE_MOUNTS") != "1":
        # Before any library is loaded that asks for it.
        os.environ.update(FUDLR_PRIVATE_MOUNTS="1", FUDLR_QUIET="1", **QUIET)
        words = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, *sys.argv]
        os.execvp("unshare", words)
    torch.set_num_threads(1)
    quieten()
    for library in ("peft", "fudlr.verify", "fudlr.compare", "fudlr.sweep", "datasets"):
        importlib.import_module(library)  # once, and not in every process
    chance, begin = random.Random(asked.seed), time.monotonic()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults: list[str] = []

    def attempt(case: Case, kind: str, act: Callable[..., list[str]], how: object) -> None:
        with disk(case.scene) as place:
            found = act(case, place, chance, how)
            found += wrong_files(case, place, may_leave=kind == "kill" or how == "later")
            found += again(case, place)
        counts[kind]["attempts"] += 1
        counts[kind]["wrong"] += bool(found)
        for each in found:
            faults.append(f"{case.name}, {kind} {how}: {each}")
            print(faults[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        scene = Path(name) / "scene"
        scene_of(scene)
        cases = [case_of(each, scene) for each in asked.commands.split(",")]
        print({case.name: (case.need, round(case.seconds, 2)) for case in cases}, flush=True)
        for case in cases:
            for kind, act, how in DISTURBANCES:
                if asked.only in ("", kind):
                    attempt(case, kind, act, how)
        for number in range(asked.kills if asked.only in ("", "kill") else 0):
            attempt(cases[number % len(cases)], "kill", kill, number)
    command = f"python benchmarks/hostile_disk.py --kills {asked.kills} --seed {asked.seed}"
    command += "" if len(cases) == len(COMMANDS) else f" --commands '{asked.commands}'"
    names, seconds = [case.name for case in cases], round(time.monotonic() - begin)
    if asked.add:
        earlier = json.loads(asked.out.read_text())
        for kind, found in earlier["disturbances"].items():
            counts[kind].update(found)
        command = f"{earlier['command']}; {command} --add"
        names, faults = [*earlier["commands"], *names], [*earlier["faults"], *faults]
        seconds += earlier["seconds"]
    attempts = sum(each["attempts"] for each in counts.values())
    sound = 1 - sum(each["wrong"] for each in counts.values()) / attempts
    write_result(
        asked.out,
        command,
        commands=names,
        disturbances={kind: dict(found) for kind, found in counts.items()},
        bars=[bar("share without loss, and with words", sound, 1.0)],
        faults=faults,
        seconds=seconds,
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
