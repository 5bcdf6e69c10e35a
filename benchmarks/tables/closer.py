"""Update rules on the demo beside real retraining."""

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("closer",)


def render(record: dict) -> list[str]:
    """One row a rule and objective."""
    lines = [
        "## Closer closed forms on the demo",
        "",
        "The mask at defaults (10% budget, λ_acc = 1, whole gradients), one retraining without it, "
        "and every update rule with the same mask: the change of the steered metric on the test "
        "prompts as a share of retraining's (*within 10%* asks for .90 to 1.10 in the mean of the "
        "seeds), the change of NDCG@10, and the seconds of the update alone beside the training's.",
        "",
        machine(record),
        "",
    ]
    for objective, found in record["results"].items():
        body = [
            (
                name,
                f"{row['share_of_retraining_mean']:.2f}",
                "yes" if abs(row["share_of_retraining_mean"] - 1) <= 0.1 else "no",
                ", ".join(f"{share:.2f}" for share in row["share_of_retraining"]),
                percent(row["ndcg@10"]),
                f"{row['update_seconds']:.1f}",
                f"{row['update_seconds'] / found['training_seconds']:.0%}",
            )
            for name, row in found["rules"].items()
        ]
        head = (
            f"{objective}: update", "of retraining's", "within 10%", "each seed", "NDCG@10",
            "seconds", "of training's",
        )  # fmt: skip
        lines += [*rows(head, body), ""]
        lines += [f"Retraining changes NDCG@10 by {percent(found['retrained_ndcg@10'])}.", ""]
    return lines[:-1]
