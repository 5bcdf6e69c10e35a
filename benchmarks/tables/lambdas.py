"""The experiment `lambdas`."""

from tables.experiments import section

PAGE = "results"
RESULTS = ("experiment_lambdas",)


def render(record: dict) -> list[str]:
    """The section."""
    return section("Sweeps of λ_fair, λ_acc and λ_spa", record)
