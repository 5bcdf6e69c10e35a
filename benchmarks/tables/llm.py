"""The real run: a pretrained language model, its closed form beside real retraining."""

from typing import Any

from matplotlib.figure import Figure

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("llm",)
SHOWN = ("arp", "arp_soft", "aplt", "gini", "coverage", "hellinger@10", "hellinger", "dp@10",
         "hr@10", "ndcg@10", "auc", "val_loss", "test_loss")  # fmt: skip
CHANGED = ("arp", "arp_soft", "aplt", "gini", "hellinger@10", "hellinger", "ndcg@10")
"""Of titles' figures: those whose changes are shown with intervals."""
STATES = ("before", "after", "retrained")
WAYS = {"store": "the closed form", "adam": "the closed form in Adam's metric",
        "replay": "the replay"}  # fmt: skip


def render(record: dict) -> list[str]:
    """The bar, then figures of each request with the interval of retraining's change."""
    lines = [
        "## A real language model",
        "",
        f"{record['model']}, {record['parameters']:,} LoRA parameters, {record['samples']:,} "
        f"training samples, grounded scores of {record['users']} users over {record['items']:,} "
        "items. Intervals are bootstrap's over users, 95%.",
        "",
        verdicts(record),
        "",
        machine(record),
        "",
    ]
    for name in record["results"]:
        lines += [*request(record, name), ""]
    if record["not_run"]:
        lines += [f"Not run yet: {', '.join(record['not_run'])}.", ""]
    if record["titles"] is None:
        return [*lines, "Titles were not scored yet."]
    return lines + _titles(record["titles"])


def request(record: dict, name: str) -> list[str]:
    """Figures of one request, what it cost, and how near it is to retraining."""
    found = record["results"][name]
    cost = _cost(found["samples"], record["shares"][name])
    lines = [f"### {name}: `{found['objective']}`", "", *_figures(found), "", cost, ""]
    lines += [_shift(record["shifts"][name], WAYS[record["way"]]), ""]
    lines += [_lists(record["lists"][name], WAYS[record["way"]]), ""]
    if name in record["again"]:
        lines += [*_again(name, found, record["again"][name]), ""]
    seeds = found["verification"].get("seeds")
    return [*lines, *_seeds(found, seeds)] if seeds else lines[:-1]


def verdicts(record: dict) -> str:
    """The bar, and whether lists and surrogate meet it."""
    return f"Bar: {record['bar']}. {' '.join(map(_verdict, record['bars']))}"


def _verdict(bar: dict) -> str:
    name = {"arp": "ARP of the lists", "arp_soft": "Its surrogate, which is steered"}[bar["metric"]]
    low, high = bar["retrained_change"]
    change = f"retraining's change {low:+.3g} to {high:+.3g}"
    others = ", ".join(f"{each:+.3g}" for each in bar["other_orders"])
    if others:
        change += f"; with the samples in another order {others}"
    if not bar["claim"]:
        return f"{name}: no claim, for retraining's own change may be none ({change})."
    return f"{name}: {'met' if bar['met'] else 'missed'}, {bar['agreement']:.2f} of it ({change})."


def _figures(found: dict) -> list[str]:
    shown = [name for name in SHOWN if name in found["before"]]
    changes = found["intervals"].get("retrained_change", {})
    body = []
    for name in shown:
        low, high = changes.get(name, (None, None))
        interval = "" if low is None else f"{low:+.3g} to {high:+.3g}"
        cells = [f"{found[state][name]:.4g}" for state in STATES]
        body.append((name, *cells, interval))
    return rows(("metric", *STATES, "retraining's change"), body)


def _cost(samples: dict, cpu: dict) -> str:
    store = f"the store {cpu['record'] / 60:.0f}, " if cpu["record"] else ""
    return (
        f"{samples['removed']} of {samples['training']:,} samples removed. CPU minutes: {store}the "
        f"request {cpu['request'] / 60:.0f}, with evaluations, {cpu['share']:.0%} of a retraining, "
        f"which took {cpu['retraining'] / 60:.0f} without any."
    )


def _again(name: str, found: dict, again: dict) -> list[str]:
    """The request's samples taken out by the replay as it is now."""
    body = [
        (metric, f"{again['after'][metric]:.4g}", f"{found['retrained'][metric]:.4g}",
         f"{again['agreement'][metric]:.2f}" if metric in again["agreement"] else "")
        for metric in SHOWN
        if metric in again["after"]
    ]  # fmt: skip
    shift = _shift(again["shifts"], "this replay")
    return [
        f"The same samples taken out by the replay as it is now (stage `again-{name}`), beside the "
        f"same retraining. {' '.join(map(_verdict, again['bars']))} {shift}",
        "",
        *rows(("metric", "replay", "retrained", "of its change"), body),
    ]


def _seeds(found: dict, seeds: dict) -> list[str]:
    """Trained with and without the request's samples in other orders, beside the run's own."""
    shown = [name for name in SHOWN if name in found["before"] and name in seeds["metrics"]]
    head = ["metric", "trained", "retraining's change", "the request's change"]
    for seed in seeds["seeds"]:
        head += [f"trained, order {seed}", f"retraining's change, order {seed}"]
    body = []
    for name in shown:
        other, before = seeds["metrics"][name], found["before"][name]
        cells = [f"{before:.4g}", f"{found['retrained'][name] - before:+.3g}",
                 f"{found['after'][name] - before:+.3g}"]  # fmt: skip
        for trained, change in zip(other["with"], other["change"], strict=True):
            cells += [f"{trained:.4g}", f"{change:+.3g}"]
        body.append((name, *cells))
    shifts = seeds["shifts"]
    cosines = ", ".join(f"{each:.2f}" for each in shifts["cosine_retrained"])
    return [
        "The same samples left out of trainings in another order (stage `seeds-arp`): what differs "
        "between orders is no effect of the samples. The shift of the run's own retraining has a "
        f"cosine of {cosines} with that in the other order, and of "
        f"{shifts['closed_form_retrained']:.2f} with the request's.",
        "",
        *rows(head, body),
    ]


def _shift(way: dict, name: str) -> str:
    return (
        f"Training moved the adapter by {way['training']:.2f}, {name} by "
        f"{way['closed_form']:.2f}, retraining by {way['retraining']:.2f}, with a cosine of "
        f"{way['cosine']:.2f}: {way['along']:.2f} of that way."
    )


def _lists(found: dict, name: str) -> str:
    apart = ", ".join(
        f"{each['closed_form']:+.2f} and {each['retraining']:+.2f} (an item of {each['ratings']} "
        "ratings)"
        for each in found["apart"]
    )
    return (
        f"Before, {found['items']} items are in all lists together, and two users' lists share "
        f"{found['alike']:.1f}. A user's list after retraining shares "
        f"{found['retrained_with_before']:.1f} items with the one before and "
        f"{found['retrained_with_closed_form']:.1f} with that of {name}; the cosine of both "
        f"changes of how often each item is listed is {found['exposure_cosine']:.2f}. Their parts "
        f"in the change of ARP differ most by {apart}: {name}'s, then retraining's."
    )


def _titles(found: dict) -> list[str]:
    names = [n for n in SHOWN if all(n in each for each in found["figures"].values())]
    changed = [n for n in CHANGED if all(n in each for each in found["changes"].values())]
    changes = [
        "",
        "Changes to the trained adapter, bootstrap intervals over users:",
        "",
        *rows(
            ("adapter", *changed),
            (
                (name, *("{:+.3g} to {:+.3g}".format(*intervals[n]) for n in changed))
                for name, intervals in found["changes"].items()
            ),
        ),
    ]
    return [
        f"### Titles: {found['users']} users, {found['candidates']} candidates",
        "",
        *rows(
            ("adapter", *names),
            (
                (name, *(f"{figures[n]:.4g}" for n in names))
                for name, figures in found["figures"].items()
            ),
        ),
        *(changes if found["changes"] else []),
    ]


def plot(record: dict) -> dict[str, Any]:
    """Relative change of each metric, closed form beside retraining."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots(1, len(record["results"]), squeeze=False)[0]
    for ax, (name, found) in zip(axes, record["results"].items(), strict=True):
        shown = [n for n in SHOWN if found["before"].get(n)]
        for shift, state in ((-0.2, "after"), (0.2, "retrained")):
            change = [100 * (found[state][n] / found["before"][n] - 1) for n in shown]
            places = [place + shift for place in range(len(shown))]
            ax.barh(places, change, height=0.4, label=state)
        ax.set_yticks(range(len(shown)), shown)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.set_title(name)
        ax.set_xlabel("change in %")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    return {"llm": figure}
