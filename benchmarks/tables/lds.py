"""Predicted against really retrained changes, pooled over seeds."""

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("lds",)


def _bar(row: dict) -> tuple[str, str, str, str]:
    """Bars from above are kept with their sign turned, so that more is always better."""
    sign, asked = (1, "at least") if row["threshold"] > 0 else (-1, "at most")
    return (
        row["bar"].replace("|", "\\|"),
        f"{sign * row['measured']:.3f}",
        f"{asked} {sign * row['threshold']:g}",
        "met" if row["met"] else "missed",
    )


def render(record: dict) -> list[str]:
    """The section."""
    body = [
        (
            kind,
            metric,
            each["removals"],
            f"{each['spearman']:.2f}",
            "{:.2f} to {:.2f}".format(*each["spearman_interval"]),
            f"{each['slope']:.2f}",
            "{:.2f} to {:.2f}".format(*each["slope_interval"]),
        )
        for kind, found in record["pooled"].items()
        for metric, each in found.items()
    ]
    moved = record["moved"]
    seeds = record["seeds"]
    held = [s["heldout"] for s in seeds if s["heldout"]]
    figures = [
        (
            s["seed"],
            f"{s['damping']:g}",
            *(f"{s['figures'][state]['arp']:.1f}" for state in ("before", "after", "retrained")),
            percent(s["heldout"]["after"]["arp"] / s["heldout"]["before"]["arp"] - 1)
            if s["heldout"]
            else "–",
            f"{s['null']['hellinger']['mean']:.4f} (p = {s['null']['hellinger']['p']:.3f})",
        )
        for s in seeds
    ]
    assert len(held) == len(seeds), "held-out users belong into every table"
    return [
        "## Predicted against retraining",
        "",
        f"Linear datamodeling score on MovieLens-100k: removals of {record['share']:.0%} of the "
        "training samples, each really retrained; ranks and deviations within a seed, pooled over "
        f"{len(seeds)} seeds, with bootstrap intervals over removals. See "
        "[verification](verification.md).",
        "",
        machine(record),
        "",
        *rows(("bar", "measured", "asked", ""), map(_bar, record["bars"])),
        "",
        *rows(("removals", "surrogate", "n", "Spearman", "95%", "slope", "95%"), body),
        "",
        "At a 10% budget with λ_acc = 1 the closed form, from the sketches that the run's store "
        f"recorded, moves ARP by {moved['after']:.1f}, retraining by {moved['retrained']:.1f} "
        "(means of the seeds); from whole gradients it comes closer (closed forms, below).",
        "",
        *rows(
            (
                "seed",
                "damping",
                "ARP trained",
                "closed form",
                "retrained",
                "held-out users",
                "hellinger with permuted groups",
            ),
            figures,
        ),
    ]
