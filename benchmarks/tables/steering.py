"""Steering modes, with their retrained truth beside them."""

from statistics import mean

from tables.shared import machine, percent, rows

PAGE = "results"
RESULTS = ("steering",)


def render(record: dict) -> list[str]:
    """One row a mode: means over the seeds."""
    seeds = list(record["seeds"].values())

    def cell(name: str, part: str, metric: str) -> str:
        return percent(mean(seed[name][part][metric] for seed in seeds))

    body = [
        (
            name.replace("_", " "),
            *(cell(name, part, "arp") for part in ("change", "heldout", "retrained")),
            *(cell(name, part, "ndcg@10") for part in ("change", "heldout", "retrained")),
            *(cell(name, part, "test_loss") for part in ("change", "retrained")),
        )
        for name in seeds[0]
    ]
    head = (
        "mode", "ARP", "held-out users", "retrained truth", "NDCG@10", "held-out users",
        "retrained truth", "test loss", "retrained truth",
    )  # fmt: skip
    return [
        "## Steering beside its retrained truth",
        "",
        "None of these but the first is removal ([steering](steering.md)). Popularity steered down "
        f"on the demo, seeds {', '.join(record['seeds'])}, defaults otherwise; relative changes on "
        "the test prompts. *Retrained truth* is real retraining with sample weights 1 − m for soft "
        "and signed masks, and without the plain removal's samples otherwise: where it falls short "
        "of the mode, the mode follows an error of the approximation, or no samples at all.",
        "",
        machine(record),
        "",
        *rows(head, body),
    ]
