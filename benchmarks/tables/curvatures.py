"""Every curvature on the demo."""

from tables.shared import machine, percent

PAGE = "results"
RESULTS = ("curvatures",)
UNSAID = 0.2


def render(record: dict) -> list[str]:
    """One row a curvature: changes, retraining's, the calibration, seconds."""
    lines = [
        "## Every curvature on the demo",
        "",
        "Popularity steered down, budget 10%, defaults otherwise; each curvature's own samples "
        "retrained without. α is the calibration of an update without entries between layers.",
        "",
        machine(record),
        "",
        "| curvature | ARP | retrained | closed form over retraining | NDCG@10 | retrained | α "
        "| seconds | warnings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    unsaid = [
        name
        for name, row in record["curvatures"].items()
        if "refused" not in row
        and row["change"]["ndcg@10"] < -UNSAID
        and row["signatures"]["ranking"] == "passed"
    ]
    for name, row in record["curvatures"].items():
        if "refused" in row:
            lines.append(f"| {name} | refused: {row['refused']} | | | | | | | |")
            continue
        change, again = row["change"], row["retrained"]
        found = row["calibration"]
        alpha = f"{found['alpha']:.3g} ± {found['standard_error']:.1g}" if found else ""
        lines.append(
            f"| {name} | {percent(change['arp'])} | {percent(again['arp'])} "
            f"| {row['closed_form_over_retraining']:.2f} | {percent(change['ndcg@10'])} "
            f"| {percent(again['ndcg@10'])} | {alpha} | {row['seconds']:.1f} "
            f"| {len(row['warnings'])} |"
        )
    lines += [
        "",
        f"Curvatures that lower NDCG@10 by more than {UNSAID:.0%} without a warning or refusal: "
        f"{', '.join(unsaid) or 'none'}.",
    ]
    return lines
