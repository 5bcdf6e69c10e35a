"""Points of a training at which its unfinished recording can be gone on with.

RECORDING/points.json: the course of training, and of each step at which a checkpoint was saved
while all rows so far were on disk, the fingerprint of the adapter. A training that resumes there
with that adapter is of that course.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from fudlr.common.files import write_json
from fudlr.gradients.store.spec import fingerprint

POINTS = "points.json"


def mark(folder: Path, step: int, theta: Tensor, course: str) -> None:
    """Note that `folder` has all rows up to `step`, at which the adapter is `theta` [d]."""
    points = _read(folder, course) or {}
    write_json(
        folder / POINTS, {"course": course, "points": {**points, str(step): fingerprint(theta)}}
    )


def find_course(folder: Path, step: int, theta: Tensor) -> str | None:
    """The course of the recording in `folder`, where it passed `step` with the adapter `theta`."""
    points = _read(folder, None)
    if points is None or points.get(str(step)) != fingerprint(theta):
        return None
    course: str = json.loads((folder / POINTS).read_text(encoding="utf-8"))["course"]
    return course


def _read(folder: Path, course: str | None) -> dict[str, str] | None:
    """The points there, of `course` where it is given; None where there are none."""
    if not (folder / POINTS).is_file():
        return None
    found = json.loads((folder / POINTS).read_text(encoding="utf-8"))
    if course is not None and found["course"] != course:
        return None
    points: dict[str, str] = found["points"]
    return points
