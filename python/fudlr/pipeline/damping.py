"""The damping of the curvature, where the options name none: from the λ of training."""

from __future__ import annotations

from torch import Tensor

from fudlr.common.errors import NumericalError

STATIONARY = 0.1
"""Share of the gradient that is left at θ* up to which training counts as converged. A training of
twenty epochs with λ = 0.1 leaves 0.05 to 0.06, the demo's own, stopped early, about 0.4."""
EARLY = 3.0
"""Times λ, the damping where training stopped early."""


def stationarity(l2: float, mean_gradient: Tensor, theta: Tensor, start: Tensor) -> float:
    """|ḡ + λ(θ* − θ₀)| / (|ḡ| + λ|θ* − θ₀|): 0 at an optimum, 1 before the first step.

    How far the mean gradient ḡ [d] and λ's part cancel, as they do where ∇L = 0.
    """
    regulariser = l2 * (theta - start)
    whole = float(mean_gradient.norm() + regulariser.norm())
    return float((mean_gradient + regulariser).norm()) / whole if whole else 0.0


def choose_damping(l2: float, mean_gradient: Tensor, theta: Tensor, start: Tensor) -> float:
    """A damping that a user need not think about: λ at a stationary point, 3 λ short of one.

    Where training stopped early the loss still falls, and its curvature changes along the way that
    retraining goes; docs/method.md says how the rule was tested.

    Args:
        l2: λ of the training.
        mean_gradient: ḡ, the training samples' mean gradient [d].
        theta: θ* [d].
        start: θ₀ [d].

    Raises:
        NumericalError: λ is 0, so that nothing sets the scale.
    """
    if l2 == 0:
        raise NumericalError(
            "a damping was to be chosen",
            "the training had no λ (train.l2 is 0), so that nothing sets its scale",
            "Give one with --damping; 0.01 to 0.1 suit a mean loss in nats",
        )
    return l2 if stationarity(l2, mean_gradient, theta, start) <= STATIONARY else EARLY * l2
