"""The sentences of a report: what changed, what got worse, and how it stands to retraining."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fudlr.common.progress import duration
from fudlr.report.cost import cost
from fudlr.report.data import ReportData, number
from fudlr.report.numbers import figure, share, signed
from fudlr.report.rows import (
    MetricRow,
    accuracy_metric,
    key_rows,
    metric_rows,
    objective_metrics,
    worse,
)

VERDICTS = {"keep": "nothing to remove", "refuse": "refused", "warn": "warning"}


def headline(data: ReportData) -> str:
    """What changed, on held-out users where there are any, and at what cost."""
    summary = data.summary
    removed, total = data.removed.height, data.mask.height
    if removed == 0:
        return f"Nothing was removed: all {total:,} training samples were kept."
    told = key_rows(summary, twins=False)
    sentence = f"Taking out {removed:,} of {total:,} training samples ({share(removed / total)}) "
    sentence += " and ".join(_movement(row) for row in told)
    if told and told[0].heldout_change.value is not None:
        sentence += " for users that it did not look at"
    spent = cost(summary)
    if spent is not None:
        part = spent.share(spent.update)
        took = f"{part} of the time of {spent.word}" if part else duration(spent.update)
        sentence += f", in {took}"
    return sentence + "."


def _movement(row: MetricRow) -> str:
    change = row.judged
    if change.value is None:
        return f"left {row.label} {change.text}"
    if signed(change.value).startswith("±"):
        return f"left {row.label} where it was"
    verb = "lowered" if change.value < 0 else "raised"
    verdict = f" ({change.verdict})" if change.verdict else ""
    return f"{verb} {row.label} by {change.text[1:]}{verdict}"


def worse_sentence(summary: Mapping[str, Any]) -> str:
    """What got worse beyond its noise; empty where nothing did."""
    found = [f"{row.label} {row.judged.text}" for row in worse(summary)]
    return f"Got worse beyond its noise: {', '.join(found)}." if found else ""


def popular_sentence(summary: Mapping[str, Any]) -> str:
    """What the most popular items for everyone would give in accuracy; empty where not measured."""
    paid = accuracy_metric(summary)
    row = next((row for row in metric_rows(summary) if row.name == paid), None)
    if row is None or row.popular.value is None:
        return ""
    return (
        f"The most popular items for everyone would give {row.label} {row.popular.text}; this "
        f"model {row.before.text} before and {row.after.text} after."
    )


def agreement_sentences(summary: Mapping[str, Any]) -> Iterator[str]:
    """For each steered metric: what retraining changed, or is expected to, and what the update."""
    for keys in objective_metrics(summary):
        for row in (row for row in metric_rows(summary) if row.name in keys):
            truth, ours = row.retrained_change, row.change
            if ours.value is None:
                continue
            if truth.value is None:
                if row.expected is not None:
                    low, high = map(signed, row.expected)
                    yield (
                        f"Retraining without the same samples is expected to change {row.label} by "
                        f"{low} to {high} (90% interval); the update did by {ours.text}."
                    )
                continue
            told = f"Retraining without the same samples changed {row.label} by {truth.text}"
            if truth.verdict == "within noise":
                yield f"{told}, which is within noise; the update by {ours.text}."
            elif truth.value:
                of_it = f"{ours.value / truth.value:.2f}".replace("-", "\N{MINUS SIGN}")
                yield f"{told}; the update by {ours.text} ({of_it} of it)."


def unclear(summary: Mapping[str, Any]) -> bool:
    """Whether a steered metric did not get better for sure."""
    steered = (
        row for row in key_rows(summary, twins=False) if row.name != accuracy_metric(summary)
    )
    return any(row.judged.verdict in ("worse", "within noise", "unchanged") for row in steered)


def diagnostic_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was looked for that could be wrong: name, verdict, figure, threshold, reason."""
    return [
        {
            "name": str(each["name"]).replace("_", " "),
            "verdict": VERDICTS.get(str(each["severity"]), str(each["severity"])),
            "measured": figure(number(each["measured"])),
            "threshold": figure(number(each["threshold"])),
            "found": f"{each['found']}. {each['reason']}",
        }
        for each in summary.get("diagnostics") or summary.get("signatures") or []
    ]


def diagnostic_line(summary: Mapping[str, Any]) -> str:
    """How many were looked for, and which of them did not pass."""
    rows = diagnostic_rows(summary)
    met = [f"{row['name']} ({row['verdict']})" for row in rows if row["verdict"] != "passed"]
    return f"diagnostics: {len(rows)} looked for, {', '.join(met) or 'none'} found" if rows else ""
