"""The near-exact bed: curvatures and update rules against retraining to the optimum."""

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("bed",)
NAMES = {
    "hessian": "exact Hessian",
    "ggn": "GGN",
    "empirical_fisher": "empirical Fisher",
    "block_fisher (matrix)": "block-diagonal empirical Fisher",
    "identity": "identity",
}


def render(record: dict) -> list[str]:
    """Slope and rank correlation of every curvature, and every update rule's error."""
    shares = " | ".join(f"{share:.0%} removed" for share in record["shares"])
    lines = [
        "## The near-exact bed",
        "",
        "A small LoRA model in float64 at a true optimum (`tests/fudlr/method/bed.py`). *Slope* is "
        "actual over predicted change over 20 random removals of 5%, really retrained, *Spearman* "
        "their rank correlation; the percentages are the error of the metric's change where the "
        "samples of the strongest influence were removed.",
        "",
        machine(record),
        "",
        f"| seed | curvature | slope | Spearman | update | {shares} |",
        "|---|---|---|---|---|" + "---|" * len(record["shares"]),
    ]
    for seed, curvatures in record["seeds"].items():
        for name, row in curvatures.items():
            for rule, errors in row["errors"].items():
                cells = " | ".join(percent(error) for error in errors)
                lines.append(
                    f"| {seed} | {name} | {row['slope']:.2f} | {row['spearman']:.3f} | {rule} "
                    f"| {cells} |"
                )
    return lines


def method(record: dict) -> list[str]:
    """The one-step table of docs/method.md: seed 0, each curvature's slope, ranks and errors."""
    shares = [f"{share:.0%}" for share in record["shares"]]
    body = (
        (
            NAMES[name],
            f"{row['slope']:.2f}",
            f"{row['spearman']:.3f}",
            *(f"{error:+.0%}" for error in row["errors"]["one_step"]),
        )
        for name, row in record["seeds"]["0"].items()
    )
    return rows(("curvature", "slope", "Spearman", *shares), body)
