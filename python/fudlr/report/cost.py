"""What the update cost, stage by stage, against training anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fudlr.common.progress import duration
from fudlr.report.data import number, section
from fudlr.report.numbers import label, share

RETRAINING = "retraining"


@dataclass(frozen=True)
class Cost:
    """Seconds of the update, and of training, which is `retraining` where that was done."""

    update: float
    training: float | None
    word: str

    @property
    def share(self) -> str | None:
        """The update's share of training's time."""
        return share(self.update / self.training) if self.training else None


@dataclass(frozen=True)
class StageRow:
    """One line of the table of times."""

    name: str
    time: str
    share: str
    total: bool = False


def cost(summary: Mapping[str, Any]) -> Cost | None:
    """The cost that the summary states, else the sum over its stages; None where there is none."""
    stated = section(summary, "cost")
    seconds = _seconds(summary)
    retraining = seconds.pop(RETRAINING, None)
    update = number(stated.get("seconds"))
    if update is None:
        update = sum(seconds.values()) if seconds else None
    if update is None:
        return None
    word = RETRAINING if retraining else "training"
    return Cost(update, retraining or number(stated.get("training_seconds")), word)


def stage_rows(summary: Mapping[str, Any]) -> Iterator[StageRow]:
    """Stages of the update and their sum, training, then what was spent on measuring alone.

    Without a list of the update's stages under `cost`, all but retraining come before the sum.
    """
    known = cost(summary)
    if known is None:
        return
    seconds = _seconds(summary)
    seconds.pop(RETRAINING, None)
    needed = section(summary, "cost").get("stages")
    own = [name for name in seconds if needed is None or name in needed]

    def row(name: str, value: float, total: bool = False) -> StageRow:
        part = share(value / known.training) if known and known.training else ""
        return StageRow(label(name), duration(value), part, total)

    yield from (row(name, seconds[name]) for name in own)
    yield row("the request in all", known.update, total=True)
    if known.training:
        yield row(known.word, known.training, total=True)
    yield from (
        row(f"{name} (measuring)", value) for name, value in seconds.items() if name not in own
    )


def time_line(summary: Mapping[str, Any]) -> str:
    """What the request took, and the whole of what was waited for; empty where not known."""
    spent = cost(summary)
    if spent is None:
        return ""
    against = f", {spent.share} of {spent.word}" if spent.share else ""
    stated = section(summary, "cost")
    whole = number(stated.get("command_seconds"))
    cpu = number(stated.get("command_cpu_seconds"))
    if whole is None:
        whole = sum(value for name, value in _seconds(summary).items() if name != RETRAINING)
    used = f" ({duration(cpu)} of CPU)" if cpu is not None else ""
    measuring = f"; {duration(whole)}{used} with all measuring" if whole > spent.update else ""
    return f"time: {duration(spent.update)} for the request{against}{measuring}"


def _seconds(summary: Mapping[str, Any]) -> dict[str, float]:
    values = {name: number(value) for name, value in section(summary, "seconds").items()}
    return {name: value for name, value in values.items() if value is not None}
