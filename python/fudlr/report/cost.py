"""What the update cost, stage by stage, against training anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fudlr.common.progress import duration
from fudlr.report.data import number, section
from fudlr.report.numbers import label, share

RETRAINING = "retraining"


class Cost(NamedTuple):
    """Seconds of the update, and of training, which is `retraining` where that was done."""

    update: float
    training: float | None
    word: str

    def share(self, seconds: float) -> str:
        """Their share of training's time; empty where that is not known."""
        return share(seconds / self.training) if self.training else ""


class StageRow(NamedTuple):
    """One line of the table of times."""

    name: str
    time: str
    share: str
    total: bool


def cost(summary: Mapping[str, Any]) -> Cost | None:
    """The cost that the summary states, else the sum over its stages; None where there is none."""
    stated = section(summary, "cost")
    seconds, retraining = _seconds(summary)
    update = number(stated.get("seconds"))
    if update is None:
        if not seconds:
            return None
        update = sum(seconds.values())
    word = RETRAINING if retraining else "training"
    return Cost(update, retraining or number(stated.get("training_seconds")), word)


def stage_rows(summary: Mapping[str, Any]) -> Iterator[StageRow]:
    """Stages of the update and their sum, training, then what was spent on measuring alone.

    Without a list of the update's stages under `cost`, all but retraining come before the sum.
    """
    known = cost(summary)
    if known is None:
        return
    seconds, _ = _seconds(summary)
    stages = section(summary, "cost").get("stages")
    needed = seconds if stages is None else stages
    lines = [(name, value, False) for name, value in seconds.items() if name in needed]
    lines += [("the request in all", known.update, True)]
    lines += [(known.word, known.training, True)] if known.training else []
    lines += [(f"{n} (measuring)", v, False) for n, v in seconds.items() if n not in needed]
    for name, value, total in lines:
        yield StageRow(label(name), duration(value), known.share(value), total)


def time_line(summary: Mapping[str, Any]) -> str:
    """What the request took, and the whole of what was waited for; empty where not known."""
    spent = cost(summary)
    if spent is None:
        return ""
    part = spent.share(spent.update)
    against = f", {part} of {spent.word}" if part else ""
    stated = section(summary, "cost")
    whole, cpu = (number(stated.get(f"command_{kind}seconds")) for kind in ("", "cpu_"))
    whole = sum(_seconds(summary)[0].values()) if whole is None else whole
    used = f" ({duration(cpu)} of CPU)" if cpu is not None else ""
    measuring = f"; {duration(whole)}{used} with all measuring" if whole > spent.update else ""
    return f"time: {duration(spent.update)} for the request{against}{measuring}"


def _seconds(summary: Mapping[str, Any]) -> tuple[dict[str, float], float | None]:
    """Of each stage, and of retraining."""
    values = {name: number(value) for name, value in section(summary, "seconds").items()}
    known = {name: value for name, value in values.items() if value is not None}
    return known, known.pop(RETRAINING, None)
