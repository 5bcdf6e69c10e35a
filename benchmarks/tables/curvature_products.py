"""Hessian and Gauss-Newton products beside other ways to them."""

from tables.shared import machine, rows

PAGE = "benchmarks"
RESULTS = ("curvature_products",)


def render(record: dict) -> list[str]:
    """The bars, then one table a size."""
    lines = [
        "## Curvature products with 8 vectors",
        "",
        "Cost of one vector in peft steps (`model(**batch).loss.backward()`).",
        "",
        f"{machine(record)} Load while it ran: {record['machine']['load'][0]:.1f}.",
        "",
        *rows(
            ("bar", "measured", "at most", ""),
            (
                (r["bar"], f"{r['measured']:.3f}", r["threshold"], "met" if r["met"] else "missed")
                for r in record["bars"]
            ),
        ),
    ]
    for case in record["cases"]:
        costs = sorted(case["rows"].items(), key=lambda item: item[1]["cost"])
        body = ((name, f"{row['cost']:.2f}", f"{row.get('error', 0):.1g}") for name, row in costs)
        lines += [
            "",
            f"### Hidden {case['hidden']}",
            "",
            *rows(("", "cost of a vector", "error beside the engine"), body),
        ]
        lines += [f"\n{name} could not run: {why}" for name, why in case["failed"].items()]
    return lines
