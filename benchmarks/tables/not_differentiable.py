"""The experiment `not_differentiable`."""

from tables.experiments import section

PAGE = "results"
RESULTS = ("experiment_not_differentiable",)


def render(record: dict) -> list[str]:
    """The section."""
    return section("Metrics without a gradient", record)
