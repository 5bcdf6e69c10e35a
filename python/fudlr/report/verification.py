"""What `fudlr verify` found, as tables that the page and the terminal share.

`TABLES` has a line a check: title, how to read it, columns, and a function from what the summary
keeps of the check to rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fudlr.report.data import section
from fudlr.report.numbers import figure, signed

Found = Mapping[str, Any]


class CheckTable(NamedTuple):
    """One check: its title, a sentence on how to read it, the columns, and the rows as text."""

    title: str
    lead: str
    head: tuple[str, ...]
    rows: list[list[str]]


def verification_tables(summary: Found, without: tuple[str, ...] = ()) -> Iterator[CheckTable]:
    """A table for every check that was done, in the order of `TABLES`."""
    for name, (title, lead, head, rows) in TABLES.items():
        found = section(summary, "verification", name)
        if found and name not in without:
            named = title.format(seeds=_listed(found.get("seeds", [])))
            yield CheckTable(named, lead, head, list(rows(found)))


def _agreements(parts: Found) -> Iterator[list[str]]:
    """One row a kind of removal and metric."""
    for kind, part in parts.items():
        if isinstance(part, Mapping):
            for metric, each in part["agreement"].items():
                row = [kind, metric, str(each["removals"])]
                for name in ("spearman", "slope"):
                    row += [f"{each[name]:.2f}", _span(each[f"{name}_interval"], ".2f")]
                yield row


def _seeds(found: Found) -> Iterator[list[str]]:
    for name, each in found["metrics"].items():
        spread = "–" if each["deviation"] is None else f"{each['deviation']:.3g}"
        yield [name, f"{each['update']:+.4g}", f"{each['mean']:+.4g}", spread]
    if shifts := found.get("shifts"):
        others = _listed([f"{each:.2f}" for each in shifts["cosine_retrained"]])
        yield ["cosine with the run's shift", f"{shifts['update_retrained']:.2f}", others, "–"]


def _heldout(found: Found) -> Iterator[list[str]]:
    for name, before in found["before"].items():
        row = [name, *(f"{found[s][name]:.4g}" for s in ("before", "after", "retrained"))]
        for state, change in (("after", "change"), ("retrained", "retrained_change")):
            span = found["intervals"][change].get(name)
            row.append(signed((found[state][name] - before) / abs(before)) if before else "–")
            row.append("–" if span is None else _span(span, "+.3g"))
        yield row


def _forgetting(found: Found) -> Iterator[list[str]]:
    wanted = ("loss_of_forgotten", "arp", "hellinger", "val_loss")
    for each in found["trained_on"]:
        start = found["start"][each["start"]]
        for name in (name for name in wanted if name in found["start"]["trained"]):
            back = each["returned"].get(name)
            row = [each["start"], each["samples"], str(each["epochs"]), name]
            row += [f"{start[name]:.4g}", f"{each['figures'][name]:.4g}"]
            yield [*row, "–" if back is None else f"{back:+.0%}"]


def _predictions(found: Found) -> Iterator[list[str]]:
    for pair, each in found.items():
        yield [pair, figure(each["total_variation"]), f"{each['shared']:.1%}"]


def _null(found: Found) -> Iterator[list[str]]:
    for state, metrics in found.items():
        for name, each in metrics.items():
            row = [state, name, figure(each["observed"]), figure(each["mean"])]
            yield [*row, _span(each["interval"], ".3g"), f"{each['p']:.2g}"]


TABLES: dict[str, tuple[str, str, tuple[str, ...], Callable[[Found], Iterator[list[str]]]]] = {
    "lds": (
        "Removals, really retrained",
        "Predicted against actual change over many removals: rank correlation, and the slope of "
        "actual over predicted; 1 is perfect.",
        ("removals", "metric", "n", "Spearman", "95%", "slope", "95%"),
        _agreements,
    ),
    "seeds": (
        "Change by removal over seeds {seeds}",
        "Retraining with and without the removed samples at each seed: their change, and how much "
        "of it is the seed's; last, the cosines of the shifts of parameters with that of the run's "
        "own retraining.",
        ("metric", "update", "retrained: mean", "deviation"),
        _seeds,
    ),
    "heldout": (
        "Held-out users, cross-fitted",
        "Each user judged by adapters that its own gradient had no part in, retraining included.",
        ("metric", "before", "after", "retrained", "change", "95%", "retrained change", "95%"),
        _heldout,
    ),
    "forgetting": (
        "What returns",
        "Adapters trained on for an epoch or two with what was unlearned and with as many kept "
        "samples; the updated one should gain as the retrained one does. 0% came back, or all.",
        ("adapter", "trained on", "epochs", "metric", "before", "after", "returned"),
        _forgetting,
    ),
    "predictions": (
        "Distance of predictions",
        "Over test prompts: the total variation between two adapters' distributions over the "
        "items, and the share of a list that is in the other's too.",
        ("adapter", "total variation", "list shared"),
        _predictions,
    ),
    "null": (
        "Gaps with the groups permuted",
        "What chance alone makes of every gap between groups; a gap with a large p is none.",
        ("adapter", "metric", "gap", "permuted: mean", "95%", "p"),
        _null,
    ),
}
"""By the name under which the summary keeps the check."""


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _span(pair: Any, form: str) -> str:
    low, high = pair
    return f"{low:{form}} … {high:{form}}"
