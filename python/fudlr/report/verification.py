"""What `fudlr verify` found, as tables that the page and the terminal share.

One function and one line in `TABLES` show a check; it takes what the summary keeps of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fudlr.report.data import section
from fudlr.report.numbers import figure, share, signed


@dataclass(frozen=True)
class CheckTable:
    """One check: its title, a sentence on how to read it, the columns, and the rows as text."""

    title: str
    lead: str
    head: tuple[str, ...]
    rows: list[list[str]]


def verification_tables(summary: Mapping[str, Any]) -> Iterator[CheckTable]:
    """A table for every check that was done, in the order of `TABLES`."""
    found = section(summary, "verification")
    for name, make in TABLES.items():
        if section(found, name):
            yield make(found[name])


def _removals(parts: Mapping[str, Any]) -> CheckTable:
    return CheckTable(
        "Removals, really retrained",
        "Predicted against actual change over many removals: rank correlation, and the slope of "
        "actual over predicted; 1 is perfect.",
        ("removals", "metric", "n", "Spearman", "95%", "slope", "95%"),
        list(_agreements(parts)),
    )


def _leave_one_out(found: Mapping[str, Any]) -> CheckTable:
    return CheckTable(
        "One sample left out",
        "The same where each retraining lacks one sample alone.",
        ("removals", "metric", "n", "Spearman", "95%", "slope", "95%"),
        list(_agreements({"one": found})),
    )


def _agreements(parts: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row a kind of removal and metric."""
    for kind, part in parts.items():
        if not isinstance(part, Mapping):
            continue
        for metric, each in part["agreement"].items():
            yield [
                kind,
                metric,
                str(each["removals"]),
                f"{each['spearman']:.2f}",
                _span(each["spearman_interval"], ".2f"),
                f"{each['slope']:.2f}",
                _span(each["slope_interval"], ".2f"),
            ]


def _seeds(found: Mapping[str, Any]) -> CheckTable:
    rows = []
    for name, each in found["metrics"].items():
        spread = "–" if each["deviation"] is None else f"{each['deviation']:.3g}"
        rows.append([name, f"{each['closed_form']:+.4g}", f"{each['mean']:+.4g}", spread])
    return CheckTable(
        f"Change by removal over seeds {', '.join(map(str, found['seeds']))}",
        "Retraining with and without the removed samples at each seed: their change, and how much "
        f"of it is the seed's.{_ways(found.get('shifts'))}",
        ("metric", "closed form", "retrained: mean", "deviation"),
        rows,
    )


def _ways(shifts: Mapping[str, Any] | None) -> str:
    if shifts is None:  # a summary of an earlier version
        return ""
    others = ", ".join(f"{each:.2f}" for each in shifts["cosine_retrained"])
    return (
        " In parameters the run's own retraining has a cosine with the seeds' shifts of "
        f"{others}, and with the update's of {shifts['closed_form_retrained']:.2f}."
    )


def _heldout(found: Mapping[str, Any]) -> CheckTable:
    spans, rows = found["intervals"], []
    for name, before in found["before"].items():
        cells = [name, *(f"{found[s][name]:.4g}" for s in ("before", "after", "retrained"))]
        for state, change in (("after", "change"), ("retrained", "retrained_change")):
            moved = signed((found[state][name] - before) / abs(before)) if before else "–"
            inside = _span(spans[change][name], "+.3g") if name in spans[change] else "–"
            cells += [moved, inside]
        rows.append(cells)
    return CheckTable(
        "Held-out users, cross-fitted",
        "Each user judged by adapters that its own gradient had no part in, retraining included.",
        ("metric", "before", "after", "retrained", "change", "95%", "retrained change", "95%"),
        rows,
    )


def _forgetting(found: Mapping[str, Any]) -> CheckTable:
    trained = found["start"]["trained"]
    wanted = ("loss_of_forgotten", "arp", "hellinger", "val_loss")
    rows = []
    for each in found["trained_on"]:
        start = found["start"][each["start"]]
        for name in (name for name in wanted if name in trained):
            back = each["returned"].get(name)
            rows.append(
                [
                    each["start"],
                    each["samples"],
                    str(each["epochs"]),
                    name,
                    f"{start[name]:.4g}",
                    f"{each['figures'][name]:.4g}",
                    "–" if back is None else f"{back:+.0%}",
                ]
            )
    return CheckTable(
        "What returns",
        "Adapters trained on for an epoch or two with what was unlearned and with as many kept "
        "samples; the updated one should gain as the retrained one does. 0% came back, or all.",
        ("adapter", "trained on", "epochs", "metric", "before", "after", "returned"),
        rows,
    )


def _planted(found: Mapping[str, Any]) -> CheckTable:
    return CheckTable(
        "Planted samples",
        f"Of {found['planted']:,} samples known to cause the bias, those among the first as many "
        "ranks.",
        ("by score", "by target popularity", "by chance", "removed"),
        [
            [
                share(found["first"]),
                share(found["first_by_popularity"]),
                share(found["chance"]),
                f"{found['planted_among_removed']:,} of {found['planted']:,}",
            ]
        ],
    )


def _null(found: Mapping[str, Any]) -> CheckTable:
    rows = [
        [
            state,
            name,
            figure(each["observed"]),
            figure(each["mean"]),
            _span(each["interval"], ".3g"),
            f"{each['p']:.2g}",
        ]
        for state, metrics in found.items()
        for name, each in metrics.items()
    ]
    return CheckTable(
        "Gaps with the groups permuted",
        "What chance alone makes of every gap between groups; a gap with a large p is none.",
        ("adapter", "metric", "gap", "permuted: mean", "95%", "p"),
        rows,
    )


TABLES: dict[str, Callable[[Mapping[str, Any]], CheckTable]] = {
    "lds": _removals,
    "loo": _leave_one_out,
    "seeds": _seeds,
    "heldout": _heldout,
    "forgetting": _forgetting,
    "planted": _planted,
    "null": _null,
}
"""By the name under which the summary keeps the check."""


def _span(pair: Any, form: str) -> str:
    low, high = pair
    return f"{low:{form}} … {high:{form}}"
