"""Rows of docs/results.md on the training unrolled from sketches, from the result files."""

from statistics import mean
from typing import Any

from rows import result, row

METRICS = ("arp", "hellinger")


def unrolled() -> list[str]:
    """The unrolled update beside retraining, over seeds: surrogates, lists, bytes of the stores."""
    rows = []
    for name, seeds in result("unrolled")["trainings"].items():
        found = list(seeds.values())
        rows += [row(name, metric, len(found), *ways(found, metric)) for metric in METRICS]
        lists = [
            mean(each["unrolled"][metric]["change_of_retraining_in_lists"] for each in found)
            for metric in METRICS
        ]
        size = mean(each["store"]["bytes_of_float32"] for each in found)
        rows.append(row(name, *(f"{change:.2f}" for change in lists), f"{size:.1%}"))
    return rows


def ways(seeds: list[dict[str, Any]], metric: str) -> list[str]:
    """Change beside retraining's, with its range, and cosine, of four ways."""
    cells = []
    for way in ("unrolled", "without_it", "first_order", "closed form"):
        found = [
            each[way][metric] if way in each else each["unrolled"][metric][way] for each in seeds
        ]
        changes = [each["change_of_retraining"] for each in found]
        spread = f" ({min(changes):.2f} to {max(changes):.2f})" if len(found) > 1 else ""
        cells += [f"{mean(changes):.2f}{spread}", f"{mean(e['cosine'] for e in found):.2f}"]
    return cells


def error_bar() -> list[str]:
    """The interval of what retraining will change, and its coverage."""
    bar = result("error_bar")
    requests = sum(each["of"] for each in bar["left_out"].values())
    inside = sum(each["inside"] for each in bar["left_out"].values())
    ends = " to ".join(f"{end:.2f}" for end in bar["interval"])
    return [row(requests, ends, f"{inside} of {requests} ({bar['coverage']:.0%})")]


def rounding() -> list[str]:
    """How far figures move with the instruction set and threads, in points of a percent."""
    keys = ("surrogates", "steered_of_the_lists", "lists")
    return [
        row(way, objective, found[objective]["samples_of_another_mask"],
            f"{found[objective]['lists_that_are_others']:.2%}",
            *(f"{found[objective][key]:.2f}" for key in keys))
        for way, found in result("rounding")["ways"].items()
        for objective in METRICS
    ]  # fmt: skip


def unrolled_before() -> list[str]:
    """Other settings of one seed, and random removals, by the version before."""
    rows = []
    for name, seeds in result("unrolled_before")["trainings"].items():
        for setting, each in seeds["0"].get("compared", {}).items():
            arp, gap = each["unrolled"]["arp"], each["unrolled"]["hellinger"]
            size = f"{each['bytes_of_float32']:.1%}" if "bytes_of_float32" in each else "–"
            keys = ("change_of_retraining", "cosine", "scores_spearman")
            cells = [f"{arp[key]:.2f}, {gap[key]:.2f}" for key in keys]
            rows.append(row(name, setting, size, *cells))
        for seed, each in seeds.items():
            if "lds" in each:
                found = each["lds"]["spearman"].values()
                cells = [f"{way['arp']:.2f}, {way['hellinger']:.2f}" for way in found]
                rows.append(row(name, seed, each["lds"]["removals"], *cells))
    return rows


def unrolled_parts() -> list[str]:
    """A row a way to compute gradients, means of the seeds."""
    rows = []
    for name, seeds in result("unrolled_parts")["ways"].items():
        key, cells = "change_of_retraining", []
        for metric in METRICS:
            cells.append(f"{mean(each[metric][key] for each in seeds.values()):.2f}")
        every = [each[metric]["cosine"] for each in seeds.values() for metric in each]
        rows.append(row(name, *cells, f"{mean(every):.2f}"))
    return rows


def costs() -> list[str]:
    """CPU time of recording and of requests."""
    rows = []
    for name, seeds in result("unrolled_costs")["trainings"].items():
        found = list(seeds.values())
        recorded = ("engine_recorded_of_peft", "peft_recorded_of_peft")
        shares = ("first_of_training", "further_of_training", "floor_of_training")
        floors = ("metric_gradients_of_floor", "further_gradients_of_floor")
        cells = [f"{mean(each[way] for each in found):.2f}" for way in recorded]
        cells += [f"{mean(each[share] for each in found):.1%}" for share in shares]
        cells += [f"{mean(each[floor] for each in found):.2f}" for floor in floors]
        rows.append(row(name, len(found), *cells))
    return rows


def attribution() -> list[str]:
    """A row a method: agreement with retraining and cost."""
    rows = []
    for name, each in result("attribution")["methods"].items():
        agreement = each["spearman"]
        cells = [
            f"{agreement[kind]['arp']:.2f}, {agreement[kind]['hellinger']:.2f}"
            for kind in ("random", "targeted", "all")
        ]
        seconds = (f"{each['recording_cpu_s']:.1f}", f"{each['cpu_s']:.1f}")
        rows.append(
            row(name, *cells, *seconds, f"{each['peak_mib']:.0f}", f"{each['disk_mib']:.0f}")
        )
    return rows
