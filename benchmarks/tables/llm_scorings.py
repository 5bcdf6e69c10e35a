"""The real run's adapters under other grounded scorings."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("llm_scorings",)
_HEAD = ("state at the end of the", "compared by", "items in lists", "ARP of lists", "after",
         "retrained", "its change", "of it", "surrogate's")  # fmt: skip
_ENDS = {"generated": "written title", "prompt": "prompt"}


def render(record: dict, title: str = "Other grounded scorings of the same adapters") -> list[str]:
    """One table, a line a way of scoring, and how many of them meet the bar."""
    return [
        f"### {title}",
        "",
        f"ARP of the lists of {record['users']} users over {record['items']:,} items, by twelve "
        "ways to hold a state of the model against the items' embeddings; the first is the run's "
        "own, which the request was steered by. Means and the "
        f"{record['directions']} directions of the whitening are the base model's. *Its change*: "
        "retraining's, bootstrap's 95%; *of it*: the share that the request's adapter makes of it; "
        "a star where that is beyond 30%, brackets where retraining's change may be none. "
        f"{_counted(record['rows'], 'arp', 'ARP of lists')} "
        f"{_counted(record['rows'], 'arp_soft', 'The surrogate')}",
        "",
        machine(record),
        "",
        *rows(_HEAD, map(_row, record["rows"])),
    ]


def _counted(found: list[dict], metric: str, name: str) -> str:
    bars = [each for row in found for each in row["bars"] if each["metric"] == metric]
    claims = [each for each in bars if each["claim"]]
    met = sum(each["met"] for each in claims)
    return f"{name}: within 30% in {met} of the {len(claims)} ways in which it changes."


def _row(row: dict) -> tuple[str, ...]:
    lists, soft = row["bars"]
    low, high = lists["retrained_change"]
    figures = row["figures"]
    return (
        _ENDS[row["query"]],
        row["space"],
        "/".join(str(row["listed"][state]) for state in ("before", "after", "retrained")),
        *(f"{figures[state]['arp']:.1f}" for state in ("before", "after", "retrained")),
        f"{low:+.3g} to {high:+.3g}",
        _share(lists),
        _share(soft),
    )


def _share(bar: dict) -> str:
    if bar["agreement"] is None:
        return ""
    share = f"{bar['agreement']:.2f}"
    if not bar["claim"]:
        return f"({share})"
    return share if bar["met"] else f"{share} *"
