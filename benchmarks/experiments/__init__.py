"""The experiments that the paper made or asked for, each a file and a line here."""

from experiments import lambdas, not_differentiable, planted, scale
from experiments.common import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    "planted": planted.EXPERIMENT,
    "lambdas": lambdas.EXPERIMENT,
    "scale": scale.EXPERIMENT,
    "not_differentiable": not_differentiable.EXPERIMENT,
}
