"""A head's cross-entropy with gradients beside torch."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("cross_entropy",)


def render(record: dict) -> list[str]:
    """One row a head and task."""
    return [
        "## A head's cross-entropy",
        "",
        "Loss and gradients of `linear_cross_entropy`, which never holds the logits, beside "
        "torch's linear and `cross_entropy` on all of them, and on blocks of rows.",
        "",
        machine(record),
        "",
        *rows(
            ("rows x width x words, gradients in", "ms", "torch, ms", "blocks, ms", "times"),
            (
                (
                    name,
                    *(f"{part['seconds'][way] * 1e3:.1f}" for way in ("ours", "logits", "blocks")),
                    f"{part['times_torch']:.2f}",
                )
                for name, part in record["heads"].items()
            ),
        ),
    ]
