"""Planted bias: of P samples known to cause it, how many stand among the first P.

Beside the ranking by score stand that by target popularity, which needs no model, and what chance
gives, P / n.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from fudlr.common.errors import DataError
from fudlr.verify.case import Case


def planted(case: Case) -> dict[str, Any] | None:
    """Shares of the planted samples found by score and by popularity."""
    path = case.checks.planted
    return None if path is None else found(case.table, read_planted(path, case.table))


def found(table: pl.DataFrame, truth: NDArray[np.bool_]) -> dict[str, Any]:
    """How a mask table ranks the samples that `truth` [n] marks.

    Args:
        table: With columns `score` (low is removed first), `mask` and `target_popularity`.
        truth: Which samples were planted.
    """
    score = table["score"].to_numpy()
    removed = table["mask"].to_numpy() > 0
    popular = -table["target_popularity"].to_numpy().astype(float)
    return {
        "planted": int(truth.sum()),
        "samples": len(truth),
        "first": first_share(score, truth),
        "first_by_popularity": first_share(popular, truth),
        "chance": float(truth.mean()),
        "removed": int(removed.sum()),
        "planted_among_removed": int((removed & truth).sum()),
    }


def first_share(order: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """Share of the P planted samples among the first P when sorted by `order`, ascending.

    Of equal values each has its fair part: the ranking by a count must not profit from the order
    of the samples.
    """
    count = int(truth.sum())
    last = np.sort(order)[count - 1]
    sure, tied = order < last, order == last
    room = count - int(sure.sum())
    return float((truth & sure).sum() + room * truth[tied].mean()) / count


def read_planted(path: Path, table: pl.DataFrame) -> NDArray[np.bool_]:
    """A CSV or Parquet table with `sample_id`, or with `user_id` and `target`, as a truth [n].

    Raises:
        DataError: It cannot be read, lacks the columns, or names no training sample.
    """
    asked = f"the planted samples in {path} were to be read"
    advice = "Give a CSV or Parquet table with sample_id, or with user_id and target"
    try:
        read = pl.read_parquet if path.suffix == ".parquet" else pl.read_csv
        given = read(path)
    except (OSError, PolarsError) as error:
        raise DataError(asked, f"it cannot be read ({error})", advice) from error
    keys = ["sample_id"] if "sample_id" in given.columns else ["user_id", "target"]
    if not set(keys) <= set(given.columns):
        raise DataError(asked, f"its columns are {', '.join(given.columns)}", advice)
    casts = [pl.col(key).cast(pl.String) for key in keys]
    known = table.select(casts).with_row_index("row")
    rows = known.join(given.select(casts).unique(), on=keys, how="semi")["row"].to_numpy()
    if not len(rows):
        raise DataError(asked, "none of them is a training sample", advice)
    truth = np.zeros(len(table), dtype=bool)
    truth[rows] = True
    return truth
