"""Instruction data: rows of `instruction`, `input`, `output`, as TALLRec and BIGRec write them.

Such rows name items by title and no user at all. Each row becomes a user of its own whose history
is read from the prompt; what else the row holds (a gender, say) becomes a column of that user.

Forms of `input`, after the data that both projects publish:
    BIGRec   ... the following movies before: "A", "B"          output: "C"
    TALLRec  User Preference: "A", "B"  User Unpreference: "C"  ... target movie "D"?  output: Yes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import build_interactions
from fudlr.data.interactions import Interactions
from fudlr.data.json_rows import Row, json_rows
from fudlr.data.text import part_files, shown, warn

FIELDS = ("instruction", "input", "output")
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
# A title ends at a quote that a separator follows: titles may hold quotes themselves.
CLOSING = re.compile(r'"(?=\s*(?:,|\?|written by\b|$))')
LIKED = ("User Preference:", "User Unpreference:", "Whether the user will like")
ANSWERS = {"yes": True, "no": False}


def titles_in(text: str) -> list[str]:
    """The quoted titles, in time that grows with the text, however many quotes are left open."""
    found = []
    for line in text.split("\n"):
        at = 0
        for close in CLOSING.finditer(line):
            start = line.find('"', at)
            if close.start() >= start + 2:
                found.append(line[start + 1 : close.start()])
                at = close.end()
    return found


def parse_prompt(prompt: str, output: str) -> tuple[list[str], list[str]] | None:
    """Titles chosen in one row, oldest first, and those named without being chosen.

    A title that the user did not like is no choice: it is in the catalogue alone. None for a row of
    neither known form.
    """
    yes = ANSWERS.get(output.strip().strip('".').lower())
    if yes is not None:
        parts, rest = [], prompt
        for mark in LIKED:
            part, found, rest = rest.partition(mark)
            if not found:
                return None
            parts.append(titles_in(part))
        target = titles_in(rest)
        if len(target) != 1:
            return None
        return parts[1] + target * yes, parts[2] + target * (not yes)
    answer = output.strip().strip('"').strip()
    _, colon, listed = prompt.partition("before:")
    history = titles_in(listed)
    return ([*history, answer], []) if colon and history and answer else None


def _extra(row: Row) -> dict[str, str]:
    """Scalars beside the prompt; `user_id` keeps its meaning under another name."""
    return {
        ("source_user_id" if name == "user_id" else name): str(value)
        for name, value in row.items()
        if name not in FIELDS and isinstance(value, str | int | float)
    }


def read_instruction_rows(rows: Iterable[tuple[str, Row]], source: str) -> Interactions:
    """Turn rows, each with what to call it, into interactions with a user a row."""
    users, named, strange = [], dict[str, None](), []
    events: list[tuple[str, str, int]] = []
    for label, row in rows:
        texts = [row.get(name) for name in FIELDS]
        if not all(isinstance(text, str) for text in texts):
            lost = next(n for n, t in zip(FIELDS, texts, strict=True) if not isinstance(t, str))
            raise DataError(
                f"{source} was to be read as instructions",
                f"{label} has {shown(row.get(lost))} for `{lost}`",
                f"Every row has {', '.join(FIELDS)} as texts",
            )
        prompt = parse_prompt(str(row["input"]), str(row["output"]))
        if prompt is None:
            strange.append(label)
            continue
        chosen, others = prompt
        named |= dict.fromkeys(chosen + others)
        if not chosen:
            continue
        users.append({"user_id": label, **_extra(row)})
        events += [(label, item, time) for time, item in enumerate(chosen)]
    if not users:
        raise DataError(
            f"{source} was to be read as instructions",
            f"the titles of no row could be told ({len(strange)} are of neither known form)",
            "Give prompts as TALLRec or BIGRec write them, or a table with user, item and time",
        )
    warn(
        f"{source}: instruction data name no user, so that each of the {len(users)} rows counts as "
        "a user of its own, and metrics between groups of users are impossible unless the rows "
        "hold the group as a further field; items are told apart by title alone",
        "no_user_id",
        len(users),
    )
    if strange:
        text = f"{len(strange)} rows are of no known form and were left out"
        shortened = ", ".join(strange[:3]) + (", …" if len(strange) > 3 else "")
        warn(f"{source}: {text} ({shortened})", "unread_rows", len(strange))
    frame = pl.DataFrame(events, ["user_id", "item_id", "time"], orient="row")
    names = list(dict.fromkeys(name for user in users for name in user))
    side = pl.DataFrame({n: [user.get(n, "") for user in users] for n in names})
    return build_interactions(frame, side, pl.DataFrame({"item_id": list(named)}), source)


def read_instructions(path: Path) -> Interactions:
    """Read instruction JSON or JSONL; a folder's parts together."""
    rows = (
        (f"{file.name.split('.')[0]} row {number}", row)
        for file in part_files(path, SUFFIXES)
        for number, row in json_rows(file)
    )
    return read_instruction_rows(rows, path.stem)
