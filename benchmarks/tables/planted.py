"""The experiment `planted`."""

from tables.experiments import section

PAGE = "results"
RESULTS = ("experiment_planted",)


def render(record: dict) -> list[str]:
    """The section."""
    return section("Planted bias", record)
