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
        "torch's linear and `cross_entropy` on all of them, and on blocks of rows. *Times* is the "
        "faster of these over ours. What is never held is formed twice: the backward pass makes "
        "the scores again, three products for torch's two where the weights are frozen. A narrow "
        "head with many words gains by it, since memory is what torch waits for; a wide one loses "
        "up to a quarter of its speed, and what is gained is the logits' memory.",
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
