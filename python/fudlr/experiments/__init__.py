"""The experiments that the paper made or asked for, each a file and a line here."""

from fudlr.experiments import full_parameters, lambdas, not_differentiable, planted, scale
from fudlr.experiments.base import Experiment, Options, Outcome
from fudlr.experiments.runner import print_experiment, run_experiment

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        planted.EXPERIMENT,
        lambdas.EXPERIMENT,
        scale.EXPERIMENT,
        not_differentiable.EXPERIMENT,
        full_parameters.EXPERIMENT,
    )
}

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Options",
    "Outcome",
    "print_experiment",
    "run_experiment",
]
