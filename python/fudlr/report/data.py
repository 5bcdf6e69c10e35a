"""What a report is made from, checked once, and the files that hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from fudlr.common.errors import DataError
from fudlr.common.files import write_json, write_table
from fudlr.common.reading import read_json

SUMMARY_FILE = "summary.json"
MASK_FILE = "mask.parquet"
CURVE_FILE = "curve.json"

INFLUENCE = "influence_"
ACCURACY = "accuracy"
REMEDY = "Name the output folder of a finished run"


@dataclass(frozen=True)
class ReportData:
    """A finished run as plain data.

    Attributes:
        summary: `before` and `after`, {metric: value}; and, each where it was measured or known:
            `retrained` and `predicted` (by first-order influence), the same;
            `intervals`: {`before` | `after` | `retrained` | `change` | `retrained_change`:
            {metric: [low, high]}}, the changes paired with `before`;
            `heldout`: {`before` | `after`: {metric: value}} on users that the gradient did not
            see, and its own `intervals`;
            `null`: {metric: {`mean`, `interval`, `p`}} with the groups permuted;
            `most_popular`: {metric: value} of the most popular items for everyone;
            `directions`: {metric: `lower` or `higher`}, which is better;
            `seconds`: {stage: seconds}, `retraining` among them;
            `cost`: {`seconds` of the update alone, `training_seconds`, `stages` that it needs};
            `verification`: {check: what `fudlr verify` found of it}, see `report.verification`;
            `diagnostics`: a list of {`name`, `severity`, `measured`, `threshold`,
            `found`, `reason`, `advice`};
            `config`, `versions`, `seed`, and `warnings`, a list of sentences.
        mask: One row a training sample: `sample_id`, `mask` (1 removed), and where known
            `score`, `influence_<metric>` and `influence_accuracy` (first-order change of the
            metric, and of the validation loss, when the sample is removed), `user_id`,
            `target`, `target_title`, `history` (a list of titles or ids, oldest first).
        curve: One dictionary a budget: `budget`, `predicted` {metric: value} of the update
            and `measured` {metric: value} of a retraining, or None.

    Raises:
        DataError: A part is missing or has another form.
    """

    summary: Mapping[str, Any]
    mask: pl.DataFrame
    curve: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            if not isinstance(self.summary.get(name), Mapping):
                raise _unusable(f"the summary has no metrics under `{name}`")
        missing = {"sample_id", "mask"} - set(self.mask.columns)
        if missing:
            raise _unusable(f"the mask table lacks the column(s) {', '.join(sorted(missing))}")
        for point in self.curve:
            if "budget" not in point or not isinstance(point.get("predicted"), Mapping):
                raise _unusable("a point of the curve lacks `budget` or `predicted`")

    @property
    def removed(self) -> pl.DataFrame:
        """The rows of the mask table that were removed, wholly or in part."""
        return self.mask.filter(pl.col("mask") > 0)

    def weights(self, ids: Sequence[int]) -> pl.Series:
        """1 − m of every sample, for a training on the samples `ids`.

        Raises:
            DataError: The mask is of other samples, or a value of it is missing, no number, or not
                between 0 and 1.
        """
        mask = self.mask["mask"]
        if self.mask["sample_id"].to_list() != list(ids):
            raise DataError(
                "the mask was to weight a training",
                f"its {len(mask)} samples are not the {len(ids)} that the run was trained on",
                "Name the run that the mask was made from with --run",
            )
        known = mask if mask.dtype.is_numeric() else pl.Series([None] * len(mask), dtype=pl.Float64)
        numbers = known.cast(pl.Float64)
        right = numbers.is_between(0, 1).fill_null(value=False).sum()
        if right < len(mask):
            raise DataError(
                "the mask was to weight a training",
                f"{len(mask) - right} of its {len(mask)} values are not between 0 and 1",
                "Debias again",
            )
        return 1.0 - numbers

    @property
    def influences(self) -> tuple[str, ...]:
        """Names of the metrics whose influences the mask table has; accuracy comes last."""
        names = [c.removeprefix(INFLUENCE) for c in self.mask.columns if c.startswith(INFLUENCE)]
        return tuple(sorted(names, key=lambda name: name == ACCURACY))


def load_report_data(folder: Path) -> ReportData:
    """Read `summary.json`, `mask.parquet` and, where there is one, `curve.json` of a run.

    Raises:
        DataError: A file is missing, damaged, or does not hold what a report needs.
    """
    summary = read_json(folder / SUMMARY_FILE, dict[str, Any], REMEDY)
    if not (folder / MASK_FILE).is_file():  # a pipe would be waited for
        raise _unusable(f"{folder / MASK_FILE} is missing, or no regular file")
    try:
        mask = pl.read_parquet(folder / MASK_FILE, glob=False)
    except (OSError, PolarsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _unusable(f"{folder / MASK_FILE} cannot be read ({reason})") from error
    points = folder / CURVE_FILE
    curve = read_json(points, list[dict[str, Any]], REMEDY) if points.exists() else []
    return ReportData(summary, mask, tuple(curve))


def save_report_data(folder: Path, data: ReportData) -> None:
    """Write the files that `load_report_data` reads; numbers that are not finite become null."""
    write_table(folder / MASK_FILE, data.mask)
    write_json(folder / CURVE_FILE, _finite(list(data.curve)))
    write_json(folder / SUMMARY_FILE, _finite(data.summary))


def number(value: Any) -> float | None:
    """`value` as a float where it is a finite number, else None: not measured."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def pair(value: Any) -> tuple[float, float] | None:
    """`value` as (low, high) where it is two finite numbers, else None."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def section(parent: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The dictionary `parent[name][name]…`; empty where there is none."""
    for name in names:
        value = parent.get(name)
        parent = value if isinstance(value, Mapping) else {}
    return parent


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _unusable(found: str) -> DataError:
    return DataError("a report was to be made from a run's results", found, REMEDY)
