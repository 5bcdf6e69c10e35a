"""How stale recorded rows are, by quarter of the epoch, and what that does to a request."""

from statistics import mean

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("record_staleness",)


def _line(found: list[dict], schedule: str) -> list[str]:
    """Means over the seeds of one schedule and epoch."""
    quarters = [mean(row["quarters"][k]["error"] for row in found) for k in range(4)]
    cells = [schedule, found[0]["epoch"], *(f"{each:.1%}" for each in quarters)]
    cells.append(f"{mean(row['all']['cosine'] for row in found):.4f}")
    for name in found[0]["requests"]:
        asked = [row["requests"][name] for row in found]
        cells.append(f"{mean(each['spearman'] for each in asked):.4f}")
        for kind in ("predicted", "measured"):
            pair = (mean(each[state][kind] for each in asked) for state in ("stale", "fresh"))
            cells.append(" / ".join(percent(each) for each in pair))
    return cells


def render(record: dict) -> list[str]:
    """One row a schedule and recorded epoch."""
    seeds = record["seeds"]
    names = list(next(iter(seeds[0]["schedules"].values()))[0]["requests"])
    head = ["schedule", "epoch", "1st quarter", "2nd", "3rd", "4th", "cosine"]
    for name in names:
        head += [f"{name}: Spearman", "predicted, stale / fresh", "measured, stale / fresh"]
    lines = [
        _line([seed["schedules"][schedule][place] for seed in seeds], schedule)
        for schedule, epochs in seeds[0]["schedules"].items()
        for place in range(len(epochs))
    ]
    return [
        "## How stale recorded rows are",
        "",
        "Rows that an epoch of the demo's training recorded while the parameters moved, beside the "
        "same samples' rows at the final adapter, in float32 and with the same directions: "
        "relative error by quarter of the epoch, Spearman of the requests' scores, and each "
        "request's change as it is predicted and as it is measured on the test prompts. *cosine* "
        "(rate falling to 0) is the demo's schedule; *constant* keeps the first rate to the end. "
        f"Seeds {', '.join(str(seed['seed']) for seed in seeds)}.",
        "",
        machine(record),
        "",
        *rows(head, lines),
    ]
