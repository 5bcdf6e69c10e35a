"""The rows that an adapter from elsewhere was trained on, as their own file has them.

Read are ids of samples, users with items, or texts as they were trained on: `prompt` and `answer`
(or `completion`, `response`, `output`), chat `messages`, or `instruction`, `input` and `output`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fudlr.common.digest import digest
from fudlr.common.errors import DataError
from fudlr.data.instructions import FIELDS, parse_prompt
from fudlr.data.interactions import Interactions, Ints, Samples
from fudlr.data.json_rows import json_rows
from fudlr.data.rows import UNKNOWN, RowSamples, RowTable
from fudlr.data.tables import READ, ending
from fudlr.data.text import warn

ANSWERS = ("answer", "completion", "response", "output")
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n{}"
    "\n\n### Input:\n{}\n\n### Response:\n"
)
"""How TALLRec and BIGRec, after Alpaca, put an instruction and its input into words."""
FORMS = "sample_id; user_id and item_id; prompt and answer; messages; or instruction, input, output"


def read_trained_rows(path: Path, interactions: Interactions, tokenizer: Any) -> Samples:
    """The samples that a file of rows names, or its texts as samples.

    Args:
        path: JSON, JSONL, Parquet or CSV; or a text file with an id of a sample a line.
        interactions: Whose users and items rows may name.
        tokenizer: Of the model, for chat messages.

    Raises:
        DataError: The file is of no known form, or names what the data have not.
    """
    asked = f"the rows in {path} were to be read"
    rows = _read(path, asked)
    names = set(rows[0]) if rows else set()
    if "sample_id" in names and not names & {"prompt", "messages", "instruction"}:
        return _by_id([row.get("sample_id") for row in rows], interactions, asked)
    if {"user_id", "item_id"} <= names and not names & {"prompt", "messages", "instruction"}:
        return _by_choice(rows, interactions, asked)
    texts = [_text(row, tokenizer, f"row {number} of {path.name}")
             for number, row in enumerate(rows, 1)]  # fmt: skip
    if not texts:
        raise DataError(asked, "there are none", f"Give rows with {FORMS}")
    who = _Names(interactions)
    both = zip(texts, rows, strict=True)
    return text_samples([{**text, **who.of(row)} for text, row in both], interactions)


def text_samples(rows: Sequence[Mapping[str, Any]], interactions: Interactions) -> RowSamples:
    """Samples of texts, `prompt`, `answer` and `chat`, with `user`, `target` and `history`."""
    n = len(rows)
    texts = [{name: row[name] for name in ("prompt", "answer", "chat")} for row in rows]
    users = np.array([row["user"] for row in rows], dtype=np.int64)
    targets = np.array([row["target"] for row in rows], dtype=np.int64)
    history = [np.array(row["history"], dtype=np.int64) for row in rows]
    table = RowTable(texts, np.arange(n), users, targets, history, digest(texts))
    return RowSamples(interactions, np.arange(n), table)


def kept(samples: Samples) -> pl.DataFrame:
    """A table that `restored` makes the samples of again."""
    if not isinstance(samples, RowSamples):
        return pl.DataFrame({"sample_id": samples.ids})
    who = {"user": samples.user, "target": samples.target}
    history = [samples.history(i).tolist() for i in range(len(samples))]
    return pl.DataFrame(samples.rows).with_columns(
        **{name: pl.Series(values) for name, values in who.items()},
        history=pl.Series(history, dtype=pl.List(pl.Int64)),
    )


def restored(table: pl.DataFrame, interactions: Interactions) -> Samples:
    """What `kept` was given."""
    if "sample_id" in table.columns:
        return Samples(interactions, table["sample_id"].to_numpy())
    return text_samples(table.to_dicts(), interactions)


def _read(path: Path, asked: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(asked, "there is no such file", "Name a JSON, JSONL, Parquet or CSV file")
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").split()
        return [{"sample_id": line} for line in lines]
    if ".json" in "".join(path.suffixes):
        return [row for _, row in json_rows(path)]
    if path.suffix == ".parquet":
        return pl.read_parquet(path, glob=False).to_dicts()
    if ending(path) not in READ:
        raise DataError(asked, "its ending is of no known form", "Name a JSON, JSONL, Parquet, CSV "
                        "or .txt file")  # fmt: skip
    return READ[ending(path)](path).frame.to_dicts()


def _by_id(given: list[Any], interactions: Interactions, asked: str) -> Samples:
    try:
        ids = np.array([int(each) for each in given], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(asked, f"an id is no whole number ({error})", "Give one a line") from error
    if not ids.size or ids.min() < 0 or ids.max() >= len(interactions):
        raise DataError(
            asked,
            f"there are none, or ids outside of 0 to {len(interactions) - 1}",
            "Give the sample_id of `fudlr export` on the same data, or user_id and item_id",
        )
    return _once(ids, interactions)


def _by_choice(rows: list[dict[str, Any]], data: Interactions, asked: str) -> Samples:
    users, items = data.users["user_id"], data.items["item_id"]
    place = {
        pair: at
        for at, pair in enumerate(
            zip(users.gather(data.user).to_list(), items.gather(data.item).to_list(), strict=True)
        )
    }
    pairs = [(str(row.get("user_id")), str(row.get("item_id"))) for row in rows]
    lost = [pair for pair in pairs if pair not in place]
    if lost:
        raise DataError(
            asked,
            f"{len(lost)} of {len(pairs)} choices are not in the data (the first: user "
            f"{lost[0][0]!r}, item {lost[0][1]!r})",
            "Name the data that they were taken from, or their texts",
        )
    return _once(np.array([place[pair] for pair in pairs], dtype=np.int64), data)


def _once(ids: Ints, data: Interactions) -> Samples:
    """The samples of `ids`; those named again are said."""
    own = np.unique(ids)
    if again := len(ids) - len(own):
        warn(f"{again} rows name samples that others name too: each counts once", "repeats", again)
    return Samples(data, own)


def _text(row: Mapping[str, Any], tokenizer: Any, where: str) -> dict[str, Any]:
    """Prompt and answer of one row as the model read them."""
    answer = next((row[name] for name in ANSWERS if row.get(name) is not None), None)
    prompt = row.get("prompt")
    messages = row.get("messages")
    if isinstance(prompt, list) and isinstance(answer, list):
        messages = [*prompt, *answer]
    if isinstance(messages, list) and (talk := _talk(messages, tokenizer, where)):
        return talk
    if isinstance(prompt, str) and isinstance(answer, str):
        return {"prompt": prompt, "answer": answer, "chat": False}
    if all(isinstance(row.get(name), str) for name in FIELDS):
        asked = ALPACA.format(row["instruction"], row["input"])
        return {"prompt": asked, "answer": row["output"], "chat": False}
    raise DataError(
        f"{where} was to be read as it was trained on",
        f"it has {', '.join(map(str, row)) or 'nothing'}, in another form",
        f"Give rows with {FORMS}; the last message is the assistant's",
    )


def _talk(messages: list[Any], tokenizer: Any, where: str) -> dict[str, Any] | None:
    """Chat whose last turn is the answer, in the tokenizer's words; None where it is none."""
    turns = [
        {name: m.get(name) for name in ("role", "content")} if isinstance(m, Mapping) else {}
        for m in messages
    ]
    texts = all(isinstance(turn.get(name), str) for turn in turns for name in ("role", "content"))
    if not texts or len(turns) < 2 or turns[-1]["role"] != "assistant":
        return None
    remedy = "Give the texts as prompt and answer"
    asked = f"{where} was to be written with the tokenizer's chat template"
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(asked, "it has none", f"{remedy}, or save the template with the tokenizer")
    write = tokenizer.apply_chat_template
    try:
        start = write(turns[:-1], tokenize=False, add_generation_prompt=True)
        whole = write(turns, tokenize=False)
    except Exception as error:  # Jinja's own, raised by the template
        found = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(asked, f"it refuses ({found})", remedy) from error
    if not whole.startswith(start):
        raise DataError(asked, "it writes the turns before the answer otherwise with it", remedy)
    return {"prompt": start, "answer": whole[len(start) :], "chat": True}


class _Names:
    """Where the ids and titles of the data stand."""

    def __init__(self, data: Interactions) -> None:
        items = data.items
        self._items = {name: i for i, name in enumerate(items["item_id"].to_list())}
        if "title" in items.columns:
            titles = {name: i for i, name in enumerate(items["title"].to_list())}
            self._items = {**titles, **self._items}
        self._users = {name: i for i, name in enumerate(data.users["user_id"].to_list())}

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """User, target and history of a row of texts, by ids or titles, where they are known."""
        chosen: list[str] = []
        if isinstance(row.get("input"), str) and isinstance(row.get("output"), str):
            parsed = parse_prompt(row["input"], row["output"])
            chosen = [] if parsed is None else parsed[0]
        target = row.get("item_id", chosen[-1] if chosen else None)
        given = row.get("history")
        history = given if isinstance(given, list) else chosen[:-1]
        return {
            "user": self._users.get(str(row.get("user_id")), UNKNOWN),
            "target": self._items.get(str(target), UNKNOWN),
            "history": [self._items[str(i)] for i in history if str(i) in self._items],
        }
