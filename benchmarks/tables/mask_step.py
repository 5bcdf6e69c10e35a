"""A step of the mask beside copying as many bytes, and beside torch."""

from tables.shared import bar_rows, machine, rows

PAGE = "results"
RESULTS = ("mask_step",)


def render(record: dict) -> list[str]:
    """One row a way of taking the step, then the bar."""
    seconds, moved = record["seconds"], record["bytes_moved"]
    return [
        "## A step of the mask",
        "",
        f"Adam on the mask of {record['samples']:,} samples for an objective of "
        f"{record['metrics']} metrics (`mask_step`). The bandwidth is that of the bytes that a "
        f"step must move, {moved / 1e6:.0f} MB, over its time; the share is of copying as many.",
        "",
        machine(record),
        "",
        *rows(
            ("", "ms", "GB/s", "share of copying"),
            (
                (
                    name,
                    f"{took * 1e3:.0f}",
                    f"{moved / took / 1e9:.1f}",
                    f"{seconds['copy'] / took:.0%}",
                )
                for name, took in seconds.items()
            ),
        ),
        "",
        *bar_rows(record),
    ]
