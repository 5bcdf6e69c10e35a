"""How near to retraining an adapter has to be for the real run's figures to be near."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("llm_path",)
SHOWN = ("arp", "arp_soft", "aplt", "gini", "test_loss")
WITHIN = 0.3
"""The bar for a figure's change."""


def render(record: dict) -> list[str]:
    """Both ways, a line an adapter: its change of each figure as a share of retraining's."""
    points = record["points"]
    before, truth = points[0]["figures"], ends(points)["figures"]
    shown = [name for name in SHOWN if name in before and truth[name] != before[name]]
    body = []
    for point in points[1:]:
        if (point["way"], point["share"]) == ("replay", 0.0):
            continue  # the end of the way before
        shares = [
            (point["figures"][name] - before[name]) / (truth[name] - before[name]) for name in shown
        ]
        cells = [f"{share:.2f}" + ("" if abs(share - 1) <= WITHIN else " *") for share in shares]
        body.append((_where(point), f"{point['error']:.2f}", f"{point['cosine']:.2f}", *cells))
    return [
        "### How near is near enough",
        "",
        "Adapters on the straight way from the trained one to the one retrained without the "
        "request's samples, and on that from there to the replay's (as it is now): their distance "
        "to the retrained adapter, as a share of how far retraining went, the cosine of their "
        "shift with retraining's, and their change of each figure as a share of retraining's. "
        f"Stars: beyond {WITHIN:.0%}. {record['users']} users.",
        "",
        machine(record),
        "",
        *rows(("adapter", "error", "cosine", *shown), body),
    ]


def ends(points: list[dict]) -> dict:
    """The retrained adapter's."""
    return next(each for each in points if (each["way"], each["share"]) == ("retrained", 1.0))


def _where(point: dict) -> str:
    if point["share"] == 1:
        return {"retrained": "retrained", "replay": "the replay"}[point["way"]]
    way = {"retrained": "trained + {:.0%} of retraining's shift",
           "replay": "retrained + {:.0%} of the replay's error"}[point["way"]]  # fmt: skip
    return way.format(point["share"])
