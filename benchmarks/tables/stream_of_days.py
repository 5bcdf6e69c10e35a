"""A stream of days: recorded, appended, requested."""

from tables.shared import machine, rows

PAGE = "results"
RESULTS = ("stream_of_days",)


def render(record: dict) -> list[str]:
    """One row a day."""
    first = record["first_store"]
    return [
        "## A stream of days",
        "",
        f"MovieLens-100k's last {len(record['days'])} days with interactions, base and adapter "
        f"trained on what is older ({first['samples']:,} samples, "
        f"{record['training_seconds']:.0f} s, recorded in {first['record_seconds']:.1f} s). Each "
        "day is recorded into a store of its own, appended, and followed by two requests on ARP: "
        "from the day's rows without the old, and from all so far. Agreement of the influences "
        "with those of the same samples in a store of everything, recorded at once "
        f"({record['share_of_numbers_that_differ']:.4%} of the stored numbers differ: "
        "other batches round otherwise).",
        "",
        machine(record),
        "",
        *rows(
            (
                "day", "new", "all", "record s", "append s",
                "request from new s", "cosine", "Spearman",
                "request from all s", "cosine", "Spearman",
            ),
            (
                (
                    day["day"], day["new"], day["all"],
                    f"{day['record_seconds']:.2f}", f"{day['append_seconds']:.2f}",
                    *_answer(day["from_new"]), *_answer(day["from_all"]),
                )
                for day in record["days"]
            ),
        ),
    ]  # fmt: skip


def _answer(found: dict) -> tuple[str, str, str]:
    return (
        f"{found['request_seconds']:.2f}", f"{found['cosine']:.6f}", f"{found['spearman']:.6f}"
    )  # fmt: skip
