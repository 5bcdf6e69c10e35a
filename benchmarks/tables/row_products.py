"""Products with stored rows beside the measured speed of memory and of multiply-adds."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("row_products",)
ASKED = 0.7  # of the limit, for the fused product


def render(record: dict) -> list[str]:
    """Every op and row type: seconds, limit, and what a torch loop of tiles takes."""
    body = []
    for name, found in record["products"].items():
        dtype, op = name.split()
        fused = op == "gram"
        met = "met" if found["share_of_limit"] >= ASKED else "missed"
        body.append(
            (
                dtype,
                f"`row_{op}`",
                f"{found['seconds'] * 1e3:.1f}",
                f"{found['limit_seconds'] * 1e3:.1f}",
                found["limited_by"],
                f"{found['share_of_limit']:.0%}" + (f" ({met})" if fused else ""),
                f"{found['times_torch']:.1f}×" if fused else "",
            )
        )
    return [
        "## Products with stored rows",
        "",
        "The limit is the larger of the time to read every row once and the time of the "
        "multiply-adds, both rates measured in the same interleaved run "
        f"({record['read_gb_per_s']:.1f} GB/s by `torch.sum`, "
        f"{record['multiply_adds_g_per_s']:.1f}·10⁹ multiply-adds a second by torch's float32 "
        f"matrix product). Asked of `row_gram`: {ASKED:.0%} of it. The last column is a loop of "
        "two torch products a tile of 256 rows.",
        "",
        machine(record),
        "",
        *rows(
            ("rows", "op", "ms", "limit, ms", "limited by", "share of limit", "beside torch"), body
        ),
    ]
