"""A mask for each group of users beside one for everyone."""

from statistics import mean

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("occupations",)


def render(record: dict) -> list[str]:
    """One row a set: means over the seeds; sets that every seed has, the largest first."""
    seeds = list(record["seeds"].values())
    names = [name for name in seeds[0]["sets"] if all(name in seed["sets"] for seed in seeds)]
    names.sort(key=lambda name: -mean(seed["sets"][name]["users"][1] for seed in seeds))

    def each(name: str, *path: str) -> list[float]:
        found = [seed["sets"][name] for seed in seeds]
        for key in path:
            found = [part[key] for part in found]
        return found

    def clear(name: str) -> int:
        return sum(high < 0 or low > 0 for low, high in each(name, "interval"))

    body = [
        (
            name,
            round(mean(users for _, users in each(name, "users"))),
            *(percent(mean(each(name, whose, "arp_soft"))) for whose in ("own", "everyones")),
            *(percent(mean(each(name, whose, "arp"))) for whose in ("own", "everyones")),
            f"{mean(each(name, 'overlap')):.2f}",
            f"{clear(name)} of {len(seeds)}",
        )
        for name in names
    ]
    better = sum(
        mean(each(name, "own", "arp_soft")) < mean(each(name, "everyones", "arp_soft"))
        for name in names
    )
    head = (
        "set", "test users", "surrogate, own mask", "everyone's mask", "ARP, own mask",
        "everyone's mask", "overlap", "interval clear of none",
    )  # fmt: skip
    return [
        f"## A mask for each {record['column']}",
        "",
        f"Steered at {record['objective'].upper()}, {record['budget']:.0%} of the training "
        f"samples removed, seeds {', '.join(record['seeds'])}; relative changes on each set's own "
        "test users, of the adapter of the set's own mask and of that made for everyone. "
        "*Overlap*: Jaccard, of the two masks. *Interval clear of none*: seeds at which the paired "
        "bootstrap of the own mask's change excludes zero. A mask of its own moves the surrogate "
        f"further for {better} of the {len(names)} sets ([groups of users](grouped.md)). Many sets "
        "have a handful of users.",
        "",
        machine(record),
        "",
        *rows(head, body),
    ]
