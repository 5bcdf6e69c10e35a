"""A result handed to other people's training: each sample's weight, beside what the sample is.

    weight_i = 1 − m_i,   0 for a sample that the debiasing took out

A weighted training multiplies each sample's loss by its weight and divides by the number of all
samples, as the removal does (see docs/method.md); leaving the rows out and dividing by those that
are left is the same up to the learning rate.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from fudlr.common.errors import UsageError
from fudlr.common.files import (
    atomic_file,
    atomic_folder,
    check_file,
    check_replaceable,
    write_json,
    write_table,
)
from fudlr.data.rows import named
from fudlr.recommenders import Prompted
from fudlr.report import load_report_data
from fudlr.run import Run, load_run
from fudlr.run.binding import result_run
from fudlr.run.shown import texts

ALPACA = re.compile(r".*?### Instruction:\n(.*?)\n+### Input:\n(.*?)\n+### Response:\s*", re.DOTALL)


def weighted_samples(result: Path, run: Run | None = None) -> pl.DataFrame:
    """One row a training sample: what it is, in ids and in words, and its weight.

    Columns: `sample_id`, `user_id`, `target_id`, `time`, `history_ids`, `weight`; where the items
    have titles or semantic IDs, `target_title`, `history_titles`, `target_codes`, `history_codes`;
    and where the recommender writes prompts, `prompt` and `answer`, the texts of its training.

    Args:
        result: A folder that `fudlr debias` wrote.
        run: Its run; loaded from where the summary says without it.

    Raises:
        DataError: The mask is not of the run's samples.
        UsageError: The run is not where it was.
    """
    data = load_report_data(result)
    run = run or load_run(result_run(result, data.summary, None))
    samples = run.split.train
    interactions = samples.interactions
    ids, recommender = interactions.items["item_id"], run.recommender
    shown = [samples.history(i)[-run.config.data.window :] for i in range(len(samples))]

    def of(names: pl.Series) -> tuple[pl.Series, pl.Series]:
        """What the items of targets and histories are called."""
        histories = [names.gather(history).to_list() for history in shown]
        return named(names, samples.target), pl.Series(histories, dtype=pl.List(pl.String))

    targets, histories = of(ids)
    columns = {
        "sample_id": samples.ids,
        "user_id": named(interactions.users["user_id"], samples.user),
        "target_id": targets,
        "time": samples.time,
        "history_ids": histories,
        "weight": data.weights(samples.ids.tolist()),
    }
    known = {"title": interactions.items["title"]} if "title" in interactions.items else {}
    if codes := recommender.record().get("codes"):
        known["codes"] = pl.Series(["".join(own) for own in codes])
    for name, series in known.items():
        columns[f"target_{name}"], columns[f"history_{name.rstrip('s')}s"] = of(series)
    table = pl.DataFrame(columns)
    if not isinstance(recommender, Prompted):
        return table
    prompts, answers = texts(recommender, samples)
    return table.with_columns(prompt=pl.Series(prompts), answer=pl.Series(answers))


def _jsonl(path: Path, table: pl.DataFrame) -> None:
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in table.iter_rows(named=True):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _alpaca(path: Path, table: pl.DataFrame) -> None:
    """What is kept, as the scripts of TALLRec and BIGRec read it: `instruction`, `input`, `output`;
    a prompt in other words than Alpaca's is an instruction whole."""
    kept = table.filter(pl.col("weight") > 0)
    rows = []
    for prompt, answer in kept.select("prompt", "answer").iter_rows():
        found = ALPACA.fullmatch(prompt)
        parts = found.groups() if found else (prompt, "")
        rows.append({"instruction": parts[0], "input": parts[1], "output": answer})
    write_json(path, rows)


def _minionerec(path: Path, table: pl.DataFrame) -> None:
    """What is kept, as MiniOneRec's data sets read it: a history in a cell as Python writes a list,
    by ids, and where there are any by titles and semantic IDs (`sid`)."""
    kept = table.filter(pl.col("weight") > 0)
    columns = {"user_id": kept["user_id"]}
    for name, target, history in FIELDS:
        if target in kept.columns:
            texts = [repr(each) for each in kept[history].to_list()]
            columns |= {f"history_item_{name}": pl.Series(texts), f"item_{name}": kept[target]}
    content = io.BytesIO()
    pl.DataFrame(columns).write_csv(content)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


FIELDS = (
    ("id", "target_id", "history_ids"),
    ("title", "target_title", "history_titles"),
    ("sid", "target_codes", "history_codes"),
)
"""MiniOneRec's name of a field, and the columns of `weighted_samples` that it is made of."""
WRITERS: dict[str, Callable[[Path, pl.DataFrame], None]] = {
    ".parquet": write_table,
    ".jsonl": _jsonl,
    ".json": _alpaca,
    ".csv": _minionerec,
}


def check_samples(out: Path, *, overwrite: bool = False) -> None:
    """Refuse before long work what `write_samples` would not write.

    Raises:
        UsageError: Another ending, a file that is there and is not to be overwritten, a place where
            nothing may be written, or `datasets` is wanted and not installed.
    """
    asked = f"samples were to be written to {out}"
    if out.suffix in WRITERS:
        check_file(out)
        if out.exists() and not overwrite:
            remedy = "Name a new file with --out, or replace that one with --overwrite"
            raise UsageError(asked, "it is there already", remedy)
        return
    if out.suffix:
        raise UsageError(
            asked,
            f"files that end in {out.suffix} are not written",
            "Use .parquet, .jsonl, .json, .csv, or no ending for a `datasets` folder",
        )
    check_replaceable(out, "samples")
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(
            asked,
            "Hugging Face's `datasets` is not installed",
            "Run `pip install datasets`, or write .parquet or .jsonl",
        )


def write_samples(table: pl.DataFrame, out: Path, *, overwrite: bool = False) -> None:
    """Write a Parquet or JSONL file, or a folder that Hugging Face `datasets` loads from disk.

    Raises:
        UsageError: As `check_samples`; or .json without prompts in words.
    """
    check_samples(out, overwrite=overwrite)
    if out.suffix == ".json" and "prompt" not in table.columns:
        raise UsageError(
            f"instructions were to be written to {out}",
            "the run's recommender writes no prompts in words",
            "Use .parquet or .jsonl, which have ids",
        )
    if out.suffix in WRITERS:
        WRITERS[out.suffix](out, table)
        return
    library: Any = importlib.import_module("datasets")
    with atomic_folder(out, "samples") as temporary:
        library.Dataset.from_dict(table.to_dict(as_series=False)).save_to_disk(str(temporary))
