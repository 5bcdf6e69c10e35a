"""The experiment `full_parameters`."""

from tables.experiments import section

PAGE = "results"
RESULTS = ("experiment_full_parameters",)


def render(record: dict) -> list[str]:
    """The section."""
    return section("All parameters instead of LoRA alone", record)
