"""Rows of docs/results.md on the training unrolled from sketches, from the result files."""

from statistics import mean

from rows import result, row


def unrolled() -> list[str]:
    """The unrolled update beside retraining, over seeds, and the interval that follows."""
    bar = result("error_bar")
    requests = sum(each["of"] for each in bar["left_out"].values())
    inside = sum(each["inside"] for each in bar["left_out"].values())
    ends = " to ".join(f"{end:.2f}" for end in bar["interval"])
    interval = row(requests, ends, f"{inside} of {requests} ({bar['coverage']:.0%})")
    return [*unrolled_of("unrolled"), interval]


def unrolled_before() -> list[str]:
    """The same of the version before, with costs, other settings and random removals."""
    return unrolled_of("unrolled_before")


def unrolled_of(file: str) -> list[str]:
    """Over seeds; costs, other settings of one seed, and random removals where they are there."""
    rows = []
    trainings = result(file)["trainings"]
    for name, seeds in trainings.items():
        for metric in ("arp", "hellinger"):
            cells = []
            for way in ("unrolled", "first order", "closed form"):
                found = [
                    each["unrolled"][metric]["first_order"]
                    if way == "first order"
                    else each[way][metric]
                    for each in seeds.values()
                ]
                changes = [each["change_of_retraining"] for each in found]
                spread = f" ({min(changes):.2f} to {max(changes):.2f})" if len(found) > 1 else ""
                cosine = mean(each["cosine"] for each in found)
                cells += [f"{mean(changes):.2f}{spread}", f"{cosine:.2f}"]
            rows.append(row(name, metric, len(seeds), *cells))
        lists = [
            mean(
                each["unrolled"][metric]["change_of_retraining_in_lists"] for each in seeds.values()
            )
            for metric in ("arp", "hellinger")
        ]
        rows.append(row(name, *(f"{change:.2f}" for change in lists)))
    for name, seeds in trainings.items():
        found = [each for each in seeds.values() if "training_cpu_s" in each]
        if not found:
            continue
        size = mean(each["store"]["bytes_of_float32"] for each in found)
        ways = ("engine_recorded_of_peft", "peft_recorded_of_peft")
        shares = ("first_of_training", "further_of_training")
        cells = [f"{mean(each[way] for each in found):.2f}" for way in ways]
        cells += [f"{mean(each[share] for each in found):.1%}" for share in shares]
        floor = mean(each["metric_gradients_of_floor"] for each in found)
        rows.append(row(name, f"{size:.1%}", *cells, f"{floor:.2f}"))
    for name, seeds in trainings.items():
        for setting, each in seeds.get("0", {}).get("compared", {}).items():
            arp, gap = each["unrolled"]["arp"], each["unrolled"]["hellinger"]
            size = f"{each['bytes_of_float32']:.1%}" if "bytes_of_float32" in each else "–"
            keys = ("change_of_retraining", "cosine", "scores_spearman")
            cells = [f"{arp[key]:.2f}, {gap[key]:.2f}" for key in keys]
            rows.append(row(name, setting, size, *cells))
        for seed, each in seeds.items():
            if "lds" in each:
                ways = each["lds"]["spearman"].values()
                cells = [f"{way['arp']:.2f}, {way['hellinger']:.2f}" for way in ways]
                rows.append(row(name, seed, each["lds"]["removals"], *cells))
    return rows


def unrolled_parts() -> list[str]:
    """A row a way to compute gradients, means of the seeds."""
    rows = []
    for name, seeds in result("unrolled_parts")["ways"].items():
        key, cells = "change_of_retraining", []
        for metric in ("arp", "hellinger"):
            cells.append(f"{mean(each[metric][key] for each in seeds.values()):.2f}")
        every = [each[metric]["cosine"] for each in seeds.values() for metric in each]
        rows.append(row(name, *cells, f"{mean(every):.2f}"))
    return rows


def costs() -> list[str]:
    """CPU time of recording and of requests, measured again."""
    rows = []
    for name, seeds in result("unrolled_costs")["trainings"].items():
        found = list(seeds.values())
        ways = ("engine_recorded_of_peft", "peft_recorded_of_peft")
        shares = ("first_of_training", "further_of_training")
        floors = ("metric_gradients_of_floor", "further_gradients_of_floor")
        cells = [f"{mean(each[way] for each in found):.2f}" for way in ways]
        cells += [f"{mean(each[share] for each in found):.1%}" for share in shares]
        cells += [f"{mean(each[floor] for each in found):.2f}" for floor in floors]
        rows.append(row(name, len(found), *cells))
    return rows
