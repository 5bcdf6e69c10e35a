"""Answers as JSON, Parquet, and tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from fudlr.common import terminal
from fudlr.common.errors import UsageError
from fudlr.common.files import check_file, write_json, write_table
from fudlr.data.described import described
from fudlr.query.answers import SIDES, Answers

ENDINGS = (".json", ".parquet")
HISTORY = 3
"""Titles of a history that tables show."""
HEADS = ["if removed", "target", "user", "history", "sample"]


def check_answers(out: Path) -> None:
    """Refuse before long work a file that `write_answers` would not write."""
    if out.suffix not in ENDINGS:
        raise UsageError(
            f"answers were to be written to {out}",
            f"files that end in {out.suffix or 'nothing'} are not written",
            f"Use one of {', '.join(ENDINGS)}",
        )
    check_file(out)


def answers_record(answers: Answers, count: int, *, tokens: bool = False) -> dict[str, Any]:
    """Everything as plain data; of each prompt the strongest `count` samples of each side, each
    with its label tokens where asked for."""
    table = with_tokens(answers, count) if tokens else answers.strongest(count)
    rows = table.partition_by("prompt", "side", as_dict=True)
    prompts = described(answers.prompts).drop("sample_id").to_dicts()
    empty: pl.DataFrame = pl.DataFrame()
    return {
        "of": answers.of,
        "rows": answers.source,
        "samples": len(answers.influence),
        "prompts": [
            {
                **prompt,
                "value": float(answers.values[at]),
                **{
                    side: rows.get((at, side), empty)
                    .drop("prompt", "side", "value", strict=False)
                    .to_dicts()
                    for side in SIDES
                },
            }
            for at, prompt in enumerate(prompts)
        ],
        "warnings": answers.warnings,
    }


def with_tokens(answers: Answers, count: int) -> pl.DataFrame:
    """`Answers.strongest` with `tokens`, a list of each sample's label tokens and their parts."""
    whole = answers.strongest(count)
    each = pl.struct("token", influence="token_influence")
    place = ["prompt", "side", "place"]
    lists = answers.tokens(count).group_by(place, maintain_order=True).agg(tokens=each)
    return whole.join(lists, on=place, maintain_order="left")


def write_answers(out: Path, answers: Answers, count: int, *, tokens: bool = False) -> None:
    """Write `answers_record` as JSON, or `Answers.strongest` as Parquet, by the ending; with a row
    for each label token in Parquet where asked for."""
    check_answers(out)
    if out.suffix == ".json":
        write_json(out, answers_record(answers, count, tokens=tokens))
    else:
        write_table(out, answers.tokens(count) if tokens else answers.strongest(count))


def answer_tables(answers: Answers, count: int) -> Iterator[tuple[str, list[list[str]]]]:
    """Two tables a prompt, the samples that raised its figure and those that lowered it: a title,
    and rows of `HEADS` as text."""
    for at, prompt in enumerate(answers_record(answers, count)["prompts"]):
        name = prompt["target_title"] or prompt["target"] or f"prompt {at}"
        who = f" for user {prompt['user_id']}" if prompt["user_id"] is not None else ""
        for side in SIDES:
            rows = [
                [
                    f"{row['influence']:+.3g}",
                    row["target_title"] or "–",
                    row["user_id"] or "–",
                    ", ".join(row["history"][-HISTORY:]),
                    str(row["sample_id"]),
                ]
                for row in prompt[side]
            ]
            yield f"What {side} the {answers.of} of {name}{who} ({prompt['value']:.4g})", rows


def print_answers(answers: Answers, count: int, console: Console | None = None) -> None:
    """Print `answer_tables`."""
    console = console or terminal.console()
    for title, rows in answer_tables(answers, count):
        console.print(terminal.table(HEADS, rows, left=5, title=title))
