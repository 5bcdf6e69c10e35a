"""The replay as it is now, on samples that it chose and a retraining that it had not seen."""

from tables import llm, llm_scorings
from tables.shared import machine

PAGE = "results"
RESULTS = ("llm_clean", "llm_clean_scorings")


def render(record: dict, scorings: dict) -> list[str]:
    """The request for ARP of a second run, and its adapters under the other scorings."""
    return [
        "## A real language model, again",
        "",
        "The run above from its kept training on, with the replay's curvature taken from batches "
        "on both sides: its own choice of samples, and a retraining without them that was made "
        f"afterwards. {llm.verdicts(record)}",
        "",
        machine(record),
        "",
        *llm.request(record, "arp"),
        "",
        *llm_scorings.render(scorings, "Other grounded scorings of this run's adapters"),
    ]
