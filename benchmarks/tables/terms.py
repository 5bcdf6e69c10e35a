"""Losses that are means of T terms: the curvature counted T times and once."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("terms",)
WAYS = {"counted": "T times", "once": "once"}
_HEAD = ("removed", "rows counted", "Gauss-Newton's curvature over it", "cosine", "of its way",
         "ARP's surrogate", "validation loss")  # fmt: skip


def render(record: dict) -> list[str]:
    """One table, means over seeds."""
    seeds = list(record["seeds"].values())
    first = seeds[0]
    return [
        "## Losses that are means",
        "",
        f"A small recommender of titles ({first['samples']} samples, {first['parameters']:,} "
        f"parameters, {first['terms']:.1f} tokens a title), {record['share']:.0%} of the samples "
        "taken out by the closed form, with empirical Fisher's rows counted as often as a title "
        "has tokens, and once, beside real retraining. The curvatures are compared along "
        "retraining's shift (geometric mean); *cosine* is of the two shifts, *of its way* how much "
        "of the closed form's shift retraining goes along it (1 is wanted); then changes on the "
        f"validation prompts, the closed form's / retraining's. Means over seeds "
        f"{', '.join(record['seeds'])}.",
        "",
        machine(record),
        "",
        *rows(_HEAD, _body(seeds)),
    ]


def _body(seeds: list[dict]) -> list[tuple[str, ...]]:
    body = []
    for removed in seeds[0]["removals"]:
        of = [seed["removals"][removed] for seed in seeds]
        for way, words in WAYS.items():
            bend, count = 1.0, len(of)
            for each in of:
                bend *= each["curvature"]["ggn"] / each["curvature"][way]
            ways = [each["ways"][way] for each in of]
            pairs = [
                f"{sum(each['changes'][key] for each in ways) / count:+.4f} / "
                f"{sum(each['retrained'][key] for each in of) / count:+.4f}"
                for key in ("arp", "val_loss")
            ]
            means = (sum(each[key] for each in ways) / count for key in ("cosine", "along"))
            body.append((removed, words, f"{bend ** (1 / count):.1f}",
                         *(f"{mean:.2f}" for mean in means), *pairs))  # fmt: skip
    return body
