"""Signatures of failure, looked for in every request: one function and one line here make one.

Each is a figure with a threshold and its reason. What is found stands in `summary.json` under
`signatures`, in the report and, where it did not pass, on the terminal; docs/signatures.md explains
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fudlr.common.errors import RefusedError
from fudlr.diagnostics.base import Facts, Finding, Look, Severity
from fudlr.diagnostics.forgetting import loss, ranking, shift
from fudlr.diagnostics.groups import small_groups
from fudlr.diagnostics.influence import PARTS, chance, no_gradient, noise
from fudlr.diagnostics.lists import lists_alike
from fudlr.diagnostics.masks import oscillation
from fudlr.diagnostics.training import training

BEFORE: dict[str, Look] = {
    "training": training,
    "lists_alike": lists_alike,
    "small_groups": small_groups,
    "no_gradient": no_gradient,
    "chance": chance,
    "noise": noise,
}
"""Looked for before samples are scored."""
MASK: dict[str, Look] = {"oscillation": oscillation}
"""Looked for before the mask's samples are taken out."""
AFTER: dict[str, Look] = {"shift": shift, "loss": loss, "ranking": ranking}
"""Looked for in the updated adapter."""
SIGNATURES: dict[str, Look] = {**BEFORE, **MASK, **AFTER}

__all__ = [
    "AFTER",
    "BEFORE",
    "MASK",
    "PARTS",
    "SIGNATURES",
    "Facts",
    "Finding",
    "Severity",
    "keeps",
    "look",
    "plain",
    "warnings",
]


def look(signatures: dict[str, Look], facts: Facts) -> list[Finding]:
    """What is found of `signatures`.

    Raises:
        RefusedError: One of them refuses the request, and it is not forced.
    """
    found = [each for each in (check(facts) for check in signatures.values()) if each]
    refused = [each for each in found if each.severity is Severity.REFUSE]
    if refused and not facts.job.config.force:
        raise RefusedError(
            f"an adapter was to be debiased for {facts.job.objective}",
            "; ".join(f"{each.found} (signature {each.name})" for each in refused),
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
