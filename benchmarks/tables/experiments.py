"""The paper's experiments: each one's table, and what became of its hypotheses."""

from tables.shared import machine, rows

WORDS = {True: "held", False: "did not hold", None: "undecided"}


def section(title: str, record: dict) -> list[str]:
    """The section of one experiment."""
    head, *body = record["table"]
    return [
        f"## {title}",
        "",
        f"{record['about']} What is done: [experiments](experiments.md).",
        "",
        machine(record),
        "",
        *rows(head, body),
        "",
        *rows(
            ("hypothesis", "", "found"),
            (
                (outcome["hypothesis"], WORDS[outcome["held"]], outcome["found"])
                for outcome in record["outcomes"]
            ),
        ),
    ]
