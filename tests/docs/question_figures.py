"""Rows of docs/results.md on requests about named users and single outputs."""

from rows import result, row


def forget() -> list[str]:
    found = result("forget")
    rows = []
    more = [(f"{0}", each) for each in found["more_users"]]
    for seed, each in [*found["seeds"].items(), *more]:
        figures, ratio = each["figures"], each["removed_loss_over_retraining"]
        states = ("trained", "retrained", "update")
        rows.append(
            row(
                each["users"],
                f"{each['share']:.1%}",
                seed,
                *(f"{figures[state]['removed_loss']:.3f}" for state in states),
                f"{ratio['update']:.2f}",
                f"{ratio['closed form']:.2f}",
                *(f"{figures[state]['membership_auc']:.3f}" for state in states),
                f"{each['request_cpu_s'] / each['retraining_cpu_s']:.1%}",
                f"{each['request_cpu_s'] / each['debias_cpu_s']:.2f}",
            )
        )
    return rows


def explain() -> list[str]:
    found = result("explain")
    rows = []
    for kind in ("named", "random"):
        each = [pair[kind]["made"] for pair in found["pairs"]]
        told = found["mean_predicted"][kind]
        rows.append(
            row(
                kind,
                f"{told:+.4f}",
                f"{found['mean_made'][kind]:+.4f}",
                f"{sum(value < 0 for value in each)} of {len(each)}",
            )
        )
    return rows


def query_speed() -> list[str]:
    found = result("query_speed")
    times, pairs = found["times"], {f"from the {at}": at for at in ("disk", "page cache")}
    named = {label: (f"fudlr, {at}", f"bergson, {at}") for label, at in pairs.items()}
    for dtype in ("float32", "bfloat16"):
        label = f"in memory, bergson's in {dtype}"
        named[label] = ("fudlr, search", f"bergson, search in {dtype}")
    rows = []
    for label, (ours, theirs) in named.items():
        cells = [f"{times[each][unit]:.2f}" for each in (ours, theirs) for unit in UNITS]
        ratios = [f"{times[theirs][unit] / times[ours][unit]:.1f}" for unit in UNITS]
        rows.append(row(label, *cells, *ratios))
    for bar in found["bars"]:
        rows.append(row(bar["bar"], f"{bar['threshold']:g}", f"{bar['measured']:.2f}"))
    return rows


UNITS = ("wall_s", "cpu_s")
