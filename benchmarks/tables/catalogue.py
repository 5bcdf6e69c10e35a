"""Expectations over a large catalogue beside chunked torch."""

from tables.shared import bar_rows, machine, rows

PAGE = "results"
RESULTS = ("catalogue",)


def render(record: dict) -> list[str]:
    """One row a dtype of items, then the bars."""
    return [
        "## Expectations over a catalogue",
        "",
        "Four expectations under a softmax over the catalogue, and their gradient in users and "
        "items (`catalogue_mean`), beside the fastest chunked torch; the exact top 10 beside "
        "chunked `topk`; peak memory beyond inputs and outputs beside that of all scores. Four "
        "products: the scores twice and both gradients alone, without exponentials, at the rate of "
        "torch's product of 2,048² in the same run; forming the scores anew costs no less.",
        "",
        machine(record),
        "",
        *rows(
            (
                "items",
                "seconds",
                "chunked torch",
                "times",
                "four products, s",
                "times by products alone",
                "top 10, times",
                "peak MB",
                "scores MB",
            ),
            (
                (
                    name,
                    f"{part['seconds']['ours']:.2f}",
                    f"{part['seconds'][part['best_chunked']]:.2f} ({part['best_chunked']})",
                    f"{part['times_chunked']:.2f}",
                    f"{part['products_seconds']:.2f}",
                    f"{part['products_times_chunked']:.2f}",
                    f"{part['times_top_chunked']:.2f}",
                    f"{part['peak_bytes'] / 1e6:.1f}",
                    f"{record['logits_bytes'] / 1e6:.0f}",
                )
                for name, part in record["expectation"].items()
            ),
        ),
        "",
        *bar_rows(record),
    ]
