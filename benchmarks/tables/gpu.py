"""What gpu.py measured on a GPU: every row beside the limits, plain PyTorch and the best rival."""

from tables.shared import machine, rows

HEAD = (
    "op", "size", "dtype", "ms", "of copy", "of product", "beside plain", "beside the best",
    "peak, MB", "plain's",
)  # fmt: skip


def _cells(row: dict) -> tuple[str, ...]:
    """A measured row; how many times as fast as plain PyTorch and as the best other way."""
    found = row["faster_than"]
    best = min(found, key=found.__getitem__, default=None)
    return (
        f"`{row['op']}`",
        row["size"],
        row["dtype"],
        f"{row['seconds']['ours']['median'] * 1e3:.3g}",
        f"{row['share_of_copy']:.0%}",
        f"{row['share_of_product']:.0%}",
        f"{found['plain']:.2f}" if "plain" in found else row["left_out"].get("plain", ""),
        "" if best is None else f"{found[best]:.2f} ({best})",
        *(f"{row['peak_bytes'][way] / 1e6:.0f}" if way in row["peak_bytes"] else ""
          for way in ("ours", "plain")),
    )  # fmt: skip


def _missing(row: dict) -> str:
    reason = row.get("failed") or row["not_measured"]
    how = "failed" if "failed" in row else "not measured"
    return f"- `{row['op']}`, {row['size']}, {row['dtype']}: {how}, {reason}"


def measured(record: dict) -> list[str]:
    """A table a family, and the rows that have no numbers with the reason."""
    found = record["limits"]
    rates = ", ".join(
        f"{rate / 1e12:.1f}·10¹² operations a second in {name.rpartition('.')[2]}"
        for name, rate in found.items()
        if name.startswith("operations")
    )
    lines = [
        "",
        machine(record),
        "",
        f"On {record['gpu']['name']}, {record['gpu']['bytes'] / 2**30:.0f} GiB. Shares are of a "
        f"measured copy, {found['bytes_per_second'] / 1e9:.0f} GB a second, and of measured matrix "
        f"products, {rates}; the bytes and operations of a row are in the result file. "
        "*Beside* is another way's time over ours: above 1, ours is faster. Peaks are of memory "
        "beyond the inputs.",
    ]
    results = record["results"]
    for family in dict.fromkeys(row["family"] for row in results):
        body = [_cells(row) for row in results if row["family"] == family and "seconds" in row]
        if body:
            lines += ["", *rows(HEAD, body)]
    missing = [_missing(row) for row in results if "seconds" not in row]
    if missing:
        lines += ["", "Without numbers:", "", *missing]
    return [*lines, ""]
