"""Rivals on the same trained adapters, and their Pareto plot."""

from statistics import mean

from matplotlib.figure import Figure

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("compare_arp", "compare_hellinger")
NAMES = {"arp": "ARP", "hellinger": "the gap between genders"}
MARKERS = "oosDv^<>PXdp"


def _figure(records: list[dict], rival: str, name: str) -> float:
    return mean(_chosen(r, rival)["figures"][name] / r["trained"][name] - 1 for r in records)


def _chosen(record: dict, rival: str) -> dict:
    found = record["rivals"][rival]
    return found["points"][found["chosen"]]


def _span(records: list[dict], rival: str, name: str) -> str:
    """The first seed's paired interval: one seed's users, not the seeds' spread."""
    record = records[0]
    low, high = record["rivals"][rival]["intervals"]["change"][name]
    return f"{percent(low / record['trained'][name])} to {percent(high / record['trained'][name])}"


def render(*given: dict) -> list[str]:
    """A section for each objective."""
    lines = [line for record in given for line in [*_section(record), ""]]
    return lines[:-1]


def _section(record: dict) -> list[str]:
    records = record["records"]
    objective, steered, ndcg = records[0]["objective"], records[0]["steered"], "ndcg@10"
    body = []
    for rival, found in records[0]["rivals"].items():
        kl = [_chosen(r, rival)["kl_to_retrained"] for r in records]
        body.append(
            (
                rival,
                ", ".join(dict.fromkeys(_chosen(r, rival)["strength"] or "–" for r in records)),
                percent(_figure(records, rival, steered)),
                _span(records, rival, steered),
                percent(_figure(records, rival, ndcg)),
                _span(records, rival, ndcg),
                f"{mean(_chosen(r, rival)['cpu_seconds'] for r in records):.1f}",
                "–" if None in kl else f"{mean(kl):.4f}",
                "yes" if found["names_samples"] else "no",
            )
        )
    nulls = [r["null"]["hellinger"] for r in records]
    trained = [r["trained"]["hellinger"] for r in records]
    ours = records[0]["rivals"]["closed form (ours)"]
    start = mean(r["trained_kl_to_retrained"] for r in records)
    assert ours["uses_users"], "our own row is on held-out users"
    return [
        f"## Rivals, steered at {NAMES[objective]}",
        "",
        f"Means over seeds {', '.join(map(str, record['seeds']))}, relative to the trained "
        "adapter, "
        "all on test prompts; what gradients of users steered is judged on users that did not. "
        "Intervals are the paired bootstrap over users of the first seed. CPU seconds include all "
        "that a rival needs, retraining too. *KL*: divergence from the adapters retrained without "
        f"our masks; the trained adapter's is {start:.4f}. "
        "Which rival, which grid and which of its points: [rivals](rivals.md).",
        "",
        machine(record),
        "",
        *rows(
            (
                "rival", "strength", steered, "95%", ndcg, "95%", "CPU s", "KL", "names samples",
            ),
            body,
        ),
        "",
        f"By chance: with the genders permuted the Hellinger distance is "
        f"{mean(n['mean'] for n in nulls):.4f}, the trained adapters' {mean(trained):.4f}.",
        "",
        f"![NDCG against {steered}](plots/compare_{objective}.svg)",
        "",
        *_winners(records, steered, ndcg),
    ]  # fmt: skip


def _winners(records: list[dict], steered: str, ndcg: str) -> list[str]:
    """Who is ahead of the closed form on both figures, and on the steered one alone."""
    own = (
        _figure(records, "closed form (ours)", steered),
        _figure(records, "closed form (ours)", ndcg),
    )
    others = [name for name in records[0]["rivals"] if "our" not in name]
    both = [
        name
        for name in others
        if _figure(records, name, steered) <= own[0] and _figure(records, name, ndcg) >= own[1]
    ]
    words = (
        f"Ahead of the closed form on both figures: {', '.join(both)}."
        if both
        else ("No rival is ahead of the closed form on both figures.")
    )
    return [
        words + " Where only the lists matter, take what is ahead. What removal alone gives is the "
        "samples that cause the bias, and an adapter close to one that never saw them (*KL*)."
    ]  # fmt: skip


def plot(*given: dict) -> dict:
    """All points of each file's first seed, as lines; the table's points large."""
    return {f"compare_{r['records'][0]['objective']}": _points(r) for r in given}


def _points(record: dict) -> Figure:
    first = record["records"][0]
    steered, ndcg = first["steered"], "ndcg@10"
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    before = first["trained"]
    axes.plot(before[steered], before[ndcg], "k*", markersize=12, label="trained")
    for i, (name, rival) in enumerate(first["rivals"].items()):
        points = [point["figures"] for point in rival["points"]]
        chosen, change = points[rival["chosen"]], rival["intervals"]["change"]
        errors = [
            [
                [max(chosen[m] - before[m] - change[m][0], 0)],
                [max(change[m][1] - chosen[m] + before[m], 0)],
            ]
            for m in (steered, ndcg)
        ]
        style = {"color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)]}
        axes.plot([p[steered] for p in points], [p[ndcg] for p in points], ":", ms=4, **style)
        axes.errorbar(
            chosen[steered], chosen[ndcg], xerr=errors[0], yerr=errors[1], ms=8, lw=0.5,
            label=name, **style,
        )  # fmt: skip
    axes.set_xlabel(f"{steered} (lower is fairer)")
    axes.set_ylabel(ndcg)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
