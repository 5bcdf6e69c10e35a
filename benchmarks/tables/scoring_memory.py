"""Scoring's memory and time by the number of samples."""

from tables.shared import bar_rows, machine, rows

PAGE = "benchmarks"
RESULTS = ("scoring_memory",)


def render(record: dict) -> list[str]:
    """The bars, then one row a count."""
    body = (
        (f"{row['samples']:,}", f"{row['cpu_s']:.1f}", f"{1e3 * row['cpu_s'] / row['samples']:.3f}",
         f"{row['grown_mb']:.1f}", f"{row['scores_mb']:.1f}")
        for row in record["rows"]
    )  # fmt: skip
    return [
        "## Memory and time by the number of samples",
        "",
        f"{machine(record)} Load while it ran: {record['machine']['load'][0]:.1f}. Bars are upper "
        "limits.",
        "",
        *bar_rows(record),
        "",
        *rows(("samples", "CPU s", "ms a sample", "memory's growth MB", "scores MB"), body),
    ]
