"""Diagnostics, run in every request: one function and one line here make one.

Each is a figure with a threshold and its reason. What is found stands in `summary.json` under
`diagnostics`, in the report and, where it did not pass, on the terminal; docs/diagnostics.md
explains them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fudlr.common.errors import RefusedError
from fudlr.diagnostics.base import MAX_LOSS_RISE, Facts, Finding, Look, Severity
from fudlr.diagnostics.influence import PARTS, chance, no_gradient, noise
from fudlr.diagnostics.recommender import (
    lists_alike,
    most_popular,
    small_groups,
    ties,
    training,
)
from fudlr.diagnostics.update import bend, due, loss, oscillation, ranking, shift

BEFORE: dict[str, Look] = {
    "training": training,
    "most_popular": most_popular,
    "lists_alike": lists_alike,
    "ties": ties,
    "small_groups": small_groups,
    "no_gradient": no_gradient,
    "chance": chance,
    "noise": noise,
}
"""Run before samples are scored."""
MASK: dict[str, Look] = {"oscillation": oscillation}
"""Run before the mask's samples are taken out."""
AFTER: dict[str, Look] = {"shift": shift, "bend": bend, "loss": loss, "ranking": ranking}
"""Run on the updated adapter."""
GIVEN_BEFORE: dict[str, Look] = {"training": training}
"""Run instead where a mask is given: the others judge what would choose one."""
GIVEN_AFTER: dict[str, Look] = {"due": due}
"""Run on the updated adapter too, where a mask is given."""
DIAGNOSTICS: dict[str, Look] = {**BEFORE, **MASK, **AFTER, **GIVEN_AFTER}

__all__ = [
    "AFTER",
    "BEFORE",
    "DIAGNOSTICS",
    "GIVEN_AFTER",
    "GIVEN_BEFORE",
    "MASK",
    "MAX_LOSS_RISE",
    "PARTS",
    "Facts",
    "Finding",
    "Severity",
    "keeps",
    "look",
    "plain",
    "warnings",
]


def look(diagnostics: dict[str, Look], facts: Facts) -> list[Finding]:
    """What each of the diagnostics finds.

    Raises:
        RefusedError: One of them refuses the request, and it is not forced.
    """
    found = [each for each in (check(facts) for check in diagnostics.values()) if each]
    refused = [each for each in found if each.severity is Severity.REFUSE]
    if refused and not facts.plan.config.force:
        raise RefusedError(
            f"an adapter was to be debiased for {facts.plan.objective}",
            "; ".join(f"{each.found} (diagnostic {each.name})" for each in refused),
            " ".join([refused[0].reason, refused[0].advice, "--force goes on all the same"]),
        )
    return found


def keeps(found: Iterable[Finding]) -> bool:
    """Whether nothing is to be removed."""
    return any(each.severity is Severity.KEEP for each in found)


def warnings(found: Iterable[Finding], *, forced: bool) -> list[str]:
    """Sentences for a person, of all that is more than a note."""
    said = [each for each in found if each.severity.rank >= Severity.WARN.rank]
    return [
        f"Forced: {each.sentence}" if forced and each.severity is not Severity.WARN
        else each.sentence
        for each in said
    ]  # fmt: skip


def plain(found: Iterable[Finding]) -> list[dict[str, Any]]:
    """For `summary.json`."""
    return [{**asdict(each), "severity": str(each.severity)} for each in found]
