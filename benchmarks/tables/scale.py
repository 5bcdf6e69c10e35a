"""The experiment `scale`."""

from tables.experiments import section

PAGE = "results"
RESULTS = ("experiment_scale",)


def render(record: dict) -> list[str]:
    """The section."""
    return section("Growth up to 10⁷ interactions", record)
