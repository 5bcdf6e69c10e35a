"""The rows of docs/results.md on several processes."""

from __future__ import annotations

from rows import result, row


def rank_kills() -> list[str]:
    """Several ranks, one of them killed."""
    found = result("rank_kills")
    equal, named, hung, slowest = (each["measured"] for each in found["bars"])
    cells = (found["kills"], f"{equal:.0%}", f"{slowest:.1f}", f"{hung:.0f}")
    return [row(*cells, found["by_themselves"], f"{named:.0%}")]


def ranks() -> list[str]:
    """A row a piece of work: one process, two ranks, and what was asked."""
    found = result("ranks")
    asked = {each["bar"]: each["threshold"] for each in found["bars"]}
    return [
        row(
            name,
            f"{each['one_s']:.2f} s",
            f"{each['two_s']:.2f} s",
            f"{each['times']:.2f}",
            f"{each['cpu_times']:.2f}",
            asked.get(name, "–"),
        )
        for name, each in found["pieces"].items()
    ]


def many_rows() -> list[str]:
    """A row a number of rows: the store, seconds and CPU seconds of a request, memory of phases."""
    lines = []
    for n, found in result("rows")["rows"].items():
        phases = found["phases"]
        cells = [f"{int(n):,}", f"{found['store_bytes'] / 1e9:.2f} GB"]
        cells += [f"{phases[name]['cpu_s']:.1f}" for name in phases]
        cells += [f"{phases[name]['mib']:.0f}" for name in phases]
        lines.append(row(*cells))
    return lines
