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
                f"{each['request_cpu_s'] / each['retraining_cpu_s']:.0%}",
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
