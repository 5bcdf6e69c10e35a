"""What an experiment is: a question, hypotheses, cells of work, and what came out of them.

A cell is a part that is finished on its own and kept as a file; an experiment that was interrupted
goes on with the cells that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from fudlr.config import RunConfig, merge

Record = dict[str, Any]
Cells = Mapping[str, Record]


@dataclass(frozen=True)
class Options:
    """What an experiment is given.

    Attributes:
        config: Options of the run and of debiasing.
        out: Where it works, and where what is finished is kept.
        seeds: Of data, model and training, one after the other.
        small: A check that all parts work, not a result.
        processes: Workers for retraining.
    """

    config: RunConfig
    out: Path
    seeds: tuple[int, ...] = (0,)
    small: bool = False
    processes: int = 1

    def of(self, settings: Mapping[str, Any]) -> RunConfig:
        """The configuration with `settings` by dotted name."""
        return merge(self.config, settings)


@dataclass(frozen=True)
class Outcome:
    """A hypothesis, whether it held (None where nothing was decided), and the figures behind it."""

    hypothesis: str
    held: bool | None
    found: str


@dataclass(frozen=True)
class Experiment:
    """A line of the table.

    Attributes:
        name: As the command has it.
        about: The question that it answers.
        cells: From options to what is to be done, by name; each gives what JSON can hold.
        outcomes: From the finished cells to what became of each hypothesis.
        rows: From the finished cells to the table for a person, a heading first.
        plot: Draws the finished cells.
        defaults: Options of the run where no configuration file is given, by dotted name.
    """

    name: str
    about: str
    cells: Callable[[Options], Mapping[str, Callable[[], Record]]]
    outcomes: Callable[[Cells], Sequence[Outcome]]
    rows: Callable[[Cells], Sequence[Sequence[str]]]
    plot: Callable[[Cells, Axes], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)
