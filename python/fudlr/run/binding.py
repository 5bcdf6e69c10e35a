"""What binds a run's parts to each other, and a result to its run.

RUN/binding.json holds a digest of every file that the run's figures depend on, of every column of
its data, and of the base model's weights. A result's summary holds the digests of what it was made
from and of its own mask, adapter and options, by the names in `WORDS`. They are compared wherever a
run or a result is read: parts of two runs, or changed ones, are never taken together.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import BaseModel
from torch import Tensor

from fudlr.common.digest import digest
from fudlr.common.errors import DataError, UsageError
from fudlr.common.files import write_json
from fudlr.common.reading import read_json
from fudlr.config import RunConfig, to_plain
from fudlr.data import Interactions

FILE = "binding.json"
FILES = (
    "config.yaml",
    "recommender.json",
    "train.json",
    "rows.parquet",
    "base/*",
    "start/*",
    "adapter/*",
)
"""What is bound in a run's folder; stores have checksums of their own."""
NOT_READ = ("README.md", ".*")
"""Names that nothing depends on."""
WORDS = {
    "model": "base model",
    "start": "start of the training",
    "adapter": "trained adapter",
    "data": "data",
    "order": "choice or order of the training samples",
    "training": "training options",
    "updated": "updated adapter",
    "mask": "mask",
    "request": "options of the request",
}
"""What a result is bound to, and how an error calls it."""


class Record(BaseModel):
    """What RUN/binding.json holds."""

    model: str
    """Digest of the base model's weights, as `model_fingerprint` has it."""
    files: dict[str, str]
    columns: dict[str, str]


def write_binding(folder: Path, interactions: Interactions, model: str) -> None:
    """Bind a run's finished folder to its data, its base model's digest, and itself."""
    record = Record(model=model, files=_files(folder), columns=columns(interactions))
    write_json(folder / FILE, record.model_dump())


def check_files(folder: Path) -> Record:
    """Compare a run's files with its binding, and return that.

    Raises:
        DataError: A file changed, is missing, or came in.
    """
    record = read_json(folder / FILE, Record, "Restore it, or train again")
    if changed := _changed(record.files, _files(folder)):
        raise DataError(
            f"the run in {folder} was to be used",
            f"it is not as it was written: {_few(changed)}",
            "Restore it or train again; set options at each command with --set, name another "
            "adapter with --adapter",
        )
    return record


def check_columns(folder: Path, recorded: Mapping[str, str], interactions: Interactions) -> None:
    """Compare a run's data with those it was trained on; columns that came in since do no harm.

    Raises:
        DataError: A column changed or is missing.
    """
    found = columns(interactions)
    if changed := _changed(recorded, {name: found[name] for name in recorded if name in found}):
        raise DataError(
            f"the run in {folder} was to be used",
            f"its data are not those that it was trained on: {_few(changed)}",
            "Name the place of those data with --set data.source=…, or train again",
        )


def result_run(result: Path, summary: Mapping[str, Any], given: Path | None) -> Path:
    """The folder of a result's run: the one `given`, else where its summary says.

    Raises:
        UsageError: There is none.
    """
    named = given or Path(str(summary.get("run", "")))
    if not (named / FILE).exists():
        raise UsageError(
            f"the result in {result} was to be used",
            f"its run is not at {named}",
            "Name the run's folder with --run",
        )
    return named


def result_parts(mask: pl.DataFrame, theta: Tensor, config: RunConfig) -> dict[str, str]:
    """Digests of what a result's own folder holds, by the names in `WORDS`: the table of the
    training samples, the updated parameters [d], the run's options with those of the request."""
    table = {name: _column(mask[name]) for name in mask.columns}
    return {"updated": digest(theta), "mask": digest(table), "request": digest(to_plain(config))}


def check_result(asked: str, recorded: object, found: Mapping[str, str]) -> None:
    """Compare what a result was made from, `binding` of its summary, with the digests of what is
    taken for it; raise DataError by the names in `WORDS` where they differ."""
    if not isinstance(recorded, Mapping):
        raise DataError(asked, "its summary does not say what it was made from", "Debias again")
    wrong = [WORDS[name] for name, value in found.items() if recorded.get(name) != value]
    if wrong:
        raise DataError(
            asked,
            f"the {_few(wrong)} {'is' if len(wrong) == 1 else 'are'} not what its summary was "
            "made with",
            "Name the run it was made from with --run, and restore its own files, or debias again",
        )


def columns(interactions: Interactions) -> dict[str, str]:
    """Digest of the interactions, in their order, and of each column of users and items."""
    events = {
        name: torch.from_numpy(getattr(interactions, name)) for name in ("user", "item", "time")
    }
    tables = {"user": interactions.users, "item": interactions.items}
    return {"interactions": digest(events)} | {
        f"{kind} column {name}": _column(table[name])
        for kind, table in tables.items()
        for name in table.columns
    }


def _column(values: pl.Series) -> str:
    # repr, since JSON has no NaN and no dates.
    return digest(repr(values.to_list()))


def _files(folder: Path) -> dict[str, str]:
    found = {}
    for pattern in FILES:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not any(fnmatchcase(path.name, each) for each in NOT_READ):
                found[path.relative_to(folder).as_posix()] = digest(path)
    return found


def _changed(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What is another now, in words."""
    words = []
    for name in sorted({*recorded, *found}):
        if name not in recorded:
            words.append(f"{name} came in")
        elif name not in found:
            words.append(f"{name} is missing")
        elif recorded[name] != found[name]:
            words.append(f"{name} changed")
    return words


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
