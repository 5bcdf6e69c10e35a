"""The rows of docs/results.md on semantic IDs."""

from __future__ import annotations

from statistics import mean

from rows import result, row


def semantic_ids() -> list[str]:
    found = result("semantic_ids")
    rows = []
    for metric in ("arp_soft", "arp", "aplt", "ndcg@10", "test_loss"):
        before, after, again = (
            mean(each[state][metric] for each in found["seeds"])
            for state in ("before", "after", "retrained")
        )
        changes = [f"{value / before - 1:+.1%}" for value in (after, again)]
        rows.append(row(metric, f"{before:.4g}", *changes))
    ratios = [f"{value:.2f}" for value in found["over_retraining_each"]]
    seeds = [each["seed"] for each in found["seeds"]]
    rows += [row(seed, ratio) for seed, ratio in zip(seeds, ratios, strict=True)]
    for part, errors in found["gradient_errors"].items():
        rows.append(row(part, *(f"{errors[key]:.1e}" for key in ("engine", "autograd_rounding"))))
    way = found["scoring"]
    rows.append(row("exact", f"{1000 * way['exact_cpu_s']:.1f}", "1.00"))
    rows.append(row("20 beams", f"{1000 * way['beams_cpu_s']:.1f}", f"{way['list_overlap']:.2f}"))
    return rows
