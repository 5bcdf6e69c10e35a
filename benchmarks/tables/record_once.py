"""Record once, debias at will: costs beside training, and what is left of the full effect."""

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("record_once",)


def render(record: dict) -> list[str]:
    """The bars, then one row a request and seed."""
    bars = rows(
        ("bar", "measured", "asked", "", "aim", ""),
        (
            (
                row["bar"],
                f"{row['measured']:.1%}",
                f"{row['asked']:.1%}",
                "met" if row["met"] else "missed",
                f"{row['aim']:.1%}",
                "reached" if row["aim_reached"] else "missed",
            )
            for row in record["bars"]
        ),
    )
    each = rows(
        ("request", "seed", "first", "further", "full method", "change", "of the full method's",
         "of retraining's"),
        (
            (
                name,
                seed["seed"],
                f"{share['first']:.1%}",
                f"{share['further']:.1%}",
                f"{share['full_method']:.1%}",
                percent(share["relative_change"]),
                f"{share['effect']:.0%}",
                f"{share['of_retraining']:.0%}",
            )
            for name, shares in record["shares"].items()
            for seed, share in zip(record["seeds"], shares, strict=True)
        ),
    )  # fmt: skip
    dims = ", ".join(sorted({f"{seed['store']['dim']:,}" for seed in record["seeds"]}))
    return [
        "## Record once, debias at will",
        "",
        "Requests answered from the sketches that the last epoch of training recorded: principal "
        f"directions of each B, {dims} numbers a row in bfloat16. Costs are CPU seconds on one "
        "thread as shares of the demo's ten epochs of plain training; *first* includes what "
        "recording added to its epoch, *without a recorder* a scoring pass in its place; "
        "*arp alone* has λ_acc = 0. Effects are changes of the metric on the test prompts, "
        "beside the full method's (every whole gradient) and beside real retraining without "
        "the samples that the request removed. The machine was shared while this was "
        "measured: costs are upper bounds. What users that the gradient did not see keep of "
        "the gain, and what chance alone gives, stands under the loop above.",
        "",
        machine(record),
        "",
        *bars,
        "",
        *each,
    ]
