"""Inverse-popularity weights: w_i ∝ φ(target)^−γ, mean 1; γ = 1 is inverse propensity scoring.

Schnabel, Swaminathan, Singh, Chandak, Joachims 2016, "Recommendations as treatments". Weights are
cut off at 10 times the mean, as is usual against their variance.
"""

import torch

from fudlr.compare.base import Point, Rival, Setting

POWERS = (0.25, 0.5)
CUT = 10.0


def _points(setting: Setting) -> list[Point]:
    samples = setting.run.split.train
    popularity = torch.from_numpy(setting.run.split.popularity[samples.target]).float().clamp(1)
    weights = []
    for power in POWERS:
        raw = popularity**-power
        cut = (raw / raw.mean()).clamp(max=CUT)
        weights.append((f"γ = {power:g}", cut / cut.mean()))
    return setting.retrained(weights, "inverse-popularity weights")


RIVAL = Rival(
    "inverse-popularity weights", "samples weighted by φ(target)^−γ, mean 1; retrained", _points
)
