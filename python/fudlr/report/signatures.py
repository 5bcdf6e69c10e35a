"""Signatures of failure that were looked for, as rows of a table and as one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fudlr.report.data import number
from fudlr.report.numbers import figure

WORDS = {"keep": "nothing to remove", "refuse": "refused", "warn": "warning"}


@dataclass(frozen=True)
class SignatureRow:
    """One signature: what was measured, what it is held against, and what became of it."""

    name: str
    verdict: str
    measured: str
    threshold: str
    found: str
    reason: str


def signature_rows(summary: Mapping[str, Any]) -> Iterator[SignatureRow]:
    """A row a signature, in the order in which they were looked for."""
    for each in summary.get("signatures") or []:
        severity = str(each["severity"])
        yield SignatureRow(
            name=str(each["name"]).replace("_", " "),
            verdict=WORDS.get(severity, severity),
            measured=figure(number(each["measured"])),
            threshold=figure(number(each["threshold"])),
            found=str(each["found"]),
            reason=str(each["reason"]),
        )


def signature_line(summary: Mapping[str, Any]) -> str | None:
    """How many were looked for, and which of them did not pass."""
    rows = list(signature_rows(summary))
    if not rows:
        return None
    met = [f"{row.name} ({row.verdict})" for row in rows if row.verdict != "passed"]
    return f"signatures of failure: {len(rows)} looked for, {', '.join(met) or 'none'} found"
