"""From options to an update: which curvature, solver and rule take masked samples out.

| `debias.update` | is |
|---|---|
| `one_step` | θ* + (1/n) H⁻¹ Gᵀ m |
| `kept_curvature` | the same with H of what is kept |
| `series` | the path of the optimum to `series_order`, from derivatives at θ* alone |
| `newton` | `newton_steps` more steps, gradients computed anew on what is kept |
| `replay` | the training gone again in the rows that it kept (see `fudlr.influence.unroll`) |

A curvature without entries between layers overshoots: its step p is cut to α p, by the quadratic
model with cross-layer products on a random part S of the samples,

    α = bᵀp / (pᵀ H p),   b = (1/n) Gᵀ m,   pᵀ H p = mean_{i ∈ S} T_i (g_iᵀ p)² + damping ‖p‖²

where the model's fall along p is largest; without such a calibration it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from fudlr.common.batches import Batches
from fudlr.common.errors import NumericalError, UsageError
from fudlr.config import DebiasConfig
from fudlr.gradients.store import GradientRows, StreamedRows
from fudlr.influence.curvature import CURVATURES, Curvature, Parts
from fudlr.influence.solvers import SOLVERS, InMetric, Solve, make_solver
from fudlr.influence.update import (
    KeptLoss,
    Update,
    finish,
    newton_update,
    removal_update,
    series_update,
)

MAX_STEPS = 20
"""Of conjugate gradients with whole gradients, where the options name none."""
UNSURE_SCALE = 0.2
"""Relative standard error of α beyond which the calibration warns."""


@dataclass(frozen=True)
class Calibration:
    """α of a step without cross-layer curvature, its standard error, and from how many samples."""

    alpha: float
    standard_error: float
    samples: int


@dataclass(frozen=True)
class Trained:
    """Where training ended, and what it minimised.

    Attributes:
        theta, start: θ* and θ₀ [d].
        l2: λ.
        damping: Of H: one number, or each parameter's own [d].
    """

    theta: Tensor
    start: Tensor
    l2: float
    damping: float | Tensor


def check_options(config: DebiasConfig) -> None:
    """Refuse before long work what cannot be done.

    Raises:
        UsageError: An unknown curvature or solver; a curvature that must not update as it is.
    """
    for kind, name, table in (
        ("curvature", config.curvature, CURVATURES),
        ("solver", config.solver, {"auto": None, **SOLVERS}),
    ):
        if name not in table:
            raise UsageError(
                f"the {kind} {name!r} was asked for",
                "there is none of that name",
                f"Choose one of {', '.join(sorted(table))}",
            )
    if config.update == "replay" and config.rows in ("auto", "trajectory"):
        _check_trajectory(config)
    if config.metric != "identity":
        _check_metric(config)
    if CURVATURES[config.curvature].couples_layers:
        return
    if config.steering:
        raise UsageError(
            f"steering {config.steering} was asked for with the curvature {config.curvature}",
            "it has no entries between layers, and only its removal can be calibrated",
            "Use empirical_fisher, ggn or hessian",
        )
    if config.calibration == 0:
        raise UsageError(
            f"an adapter was to be updated with the curvature {config.curvature}",
            "it has no entries between layers, so that every layer would supply the whole shift, "
            "and its calibration is switched off (debias.calibration is 0)",
            "Set debias.calibration to some hundred samples, or use empirical_fisher or ggn",
        )
    if config.update != "one_step":
        raise UsageError(
            f"the update {config.update} was asked for with the curvature {config.curvature}",
            "it has no entries between layers, and only its one step can be calibrated",
            "Use empirical_fisher, ggn or hessian, or --set debias.update=one_step",
        )


def _check_trajectory(config: DebiasConfig) -> None:
    """Refuse a curvature or metric where the training itself stands for both."""
    usual = DebiasConfig.model_fields
    for name in ("curvature", "metric"):
        if getattr(config, name) != usual[name].default:
            raise UsageError(
                f"the training was to be gone again (debias.update: replay) with the {name} "
                f"{getattr(config, name)}",
                "the rows of the trajectory need none: the training stands for it",
                f"Leave {name} out, or score samples from their last gradients "
                "(debias.rows: memory)",
            )


def _check_metric(config: DebiasConfig) -> None:
    """Refuse what is not meant for, or cannot use, a damping for each parameter."""
    found = None
    if not CURVATURES[config.curvature].couples_layers:
        found = f"the curvature {config.curvature} has no entries between layers"
    elif config.solver not in ("auto", "cg", "lanczos", "lissa"):
        found = f"the solver {config.solver} knows one damping for all parameters"
    elif config.update in ("series", "newton"):
        found = f"the update {config.update} goes on to the optimum, past where training stopped"
    elif config.slope == "descend":
        found = "debias.slope descend goes down the slope that is left, where a retraining stops"
    elif config.polish:
        found = "debias.polish is for requests that a store answered"
    if found:
        raise UsageError(
            f"the damping was to be in the metric of {config.metric} (debias.metric)",
            found,
            "Use empirical_fisher or ggn with cg and the update one_step, or the metric identity",
        )


class Removal:
    """How masked samples leave the adapter under the options.

    Args:
        config: The options; see `check_options`.
        parts: What the curvature is made of, at θ*.
        rows: Their gradients at θ* `[n, d]`, which the parts have too.
        batches_of: Batches of the training samples at given indices, in that order.
        trained: θ*, θ₀, λ and the damping.
    """

    def __init__(
        self,
        config: DebiasConfig,
        parts: Parts,
        rows: GradientRows,
        batches_of: Callable[[Tensor], Batches],
        trained: Trained,
    ) -> None:
        self._config, self._parts, self._rows = config, parts, rows
        self._trained = trained
        self._batches_of = batches_of
        self.solve = self._solver(None)
        """H⁻¹ of all samples at θ*."""

    def _curvature(self, weights: Tensor | None) -> Curvature:
        return CURVATURES[self._config.curvature].make(replace(self._parts, weights=weights))

    def _solver(self, weights: Tensor | None) -> Solve:
        curvature, name = self._curvature(weights), self._config.solver
        if name == "auto":
            name = "direct" if hasattr(curvature, "inverse") else "cg"
        iterates = name in ("cg", "lanczos", "lissa")
        options = {"max_steps": self._config.max_steps or MAX_STEPS} if iterates else {}
        damping = self._trained.damping
        if isinstance(damping, Tensor):
            scaled = InMetric(curvature, damping)
            return scaled.solver(make_solver(scaled, 1.0, name, **options))
        return make_solver(curvature, damping, name, **options)

    def update(self, mask: Tensor) -> Update:
        """Take the masked samples out; the model holds θ* before and after."""
        config, trained, rows = self._config, self._trained, self._rows
        self._parts.engine.load(trained.theta)
        if config.update == "kept_curvature":
            solve = self._solver(1 - mask.to(trained.theta))
        else:
            solve = self.solve
        slope = None
        if config.slope == "descend":
            everything = torch.full((1, rows.n), 1 / rows.n).to(trained.theta)
            slope = rows.sum(everything)[0] + trained.l2 * (trained.theta - trained.start)
        face = (trained.theta, rows, mask, solve)
        if not CURVATURES[config.curvature].couples_layers:
            return self._calibrated(removal_update(*face, slope=slope), mask, slope)
        first = removal_update(*face, slope=slope)
        return self._continued(first, mask) if config.update in ("series", "newton") else first

    def _continued(self, first: Update, mask: Tensor) -> Update:
        config, trained, parts = self._config, self._trained, self._parts

        def kept(index: Tensor | None) -> KeptLoss:
            return KeptLoss(
                parts.engine,
                parts.forward,
                parts.loss,
                parts.batches if index is None else self._batches_of(index),
                rows=self._rows,
                mask=mask,
                theta=trained.theta,
                start=trained.start,
                l2=trained.l2,
                index=index,
                descend=config.slope == "descend",
            )

        # The series is of the exact path, and only the exact Hessian starts it rightly.
        if config.update == "series" or config.curvature == "hessian":
            first = series_update(first, kept(None), self.solve, config.series_order)
            if config.update == "series":
                return first
        weights = 1 - mask.to(trained.theta)
        index = None
        if config.newton_share < 1:
            index = _some(self._rows.n, math.ceil(config.newton_share * self._rows.n), config.seed)
        return newton_update(
            first, kept(index), lambda _: self._solver(weights), config.newton_steps
        )

    def _calibrated(self, proposed: Update, mask: Tensor, slope: Tensor | None) -> Update:
        """The step cut to where the quadratic model with cross-layer products is lowest."""
        config, trained, parts = self._config, self._trained, self._parts
        right = self._rows.sum(mask.to(trained.theta)[None])[0] / self._rows.n
        if slope is not None:
            right = right - slope
        some = _some(self._rows.n, min(config.calibration, self._rows.n), config.seed)
        rows = StreamedRows(parts.engine, parts.forward, parts.loss, self._batches_of(some))
        shift = proposed.delta
        dots = rows.dots(shift[None])[:, 0]
        if parts.terms is not None:
            dots = dots * parts.terms[some].to(dots).sqrt()
        assert not isinstance(trained.damping, Tensor)  # check_options
        found = calibrate(shift, right, dots, trained.damping)
        update = finish(trained.theta, found.alpha * shift, proposed.solution)
        said = [
            f"{config.curvature} has no entries between layers: its step was cut to "
            f"{found.alpha:.3g} ± {found.standard_error:.1g} of its length, by cross-layer "
            f"products on {found.samples} samples. It ranks samples; for an update "
            "empirical_fisher agrees better with retraining."
        ]
        if found.standard_error > UNSURE_SCALE * abs(found.alpha):
            said.append(
                "The calibration is unsure of that factor: raise debias.calibration, or use a "
                "curvature with entries between layers."
            )
        return replace(
            update,
            warnings=[*update.warnings, *said],
            details={"calibration": asdict(found)},
        )


def calibrate(shift: Tensor, right: Tensor, dots: Tensor, damping: float) -> Calibration:
    """The factor α of a proposed shift that the quadratic model with cross-layer curvature likes.

    Args:
        shift: p `[d]`.
        right: b `[d]`, the slope that the shift goes down.
        dots: √T_i g_iᵀp of some samples, `[s]`.
        damping: Absolute.

    Returns:
        α = bᵀp / (mean of squares + damping ‖p‖²), with the standard error that the mean gives it.

    Raises:
        NumericalError: The shift is zero, or does not go down.
    """
    squares = dots.double().square()
    bend = float(squares.mean()) + damping * float(shift.double().square().sum())
    fall = float(right.double() @ shift.double())
    if not bend > 0 or not fall > 0:
        if not float(shift.norm()):
            return Calibration(1.0, 0.0, len(dots))  # nothing is removed
        raise NumericalError(
            "a step was to be calibrated by cross-layer products",
            f"its slope is {fall:.3g} and its curvature {bend:.3g}, where both should be above 0",
            "Raise the damping, or use empirical_fisher",
        )
    alpha = fall / bend
    error = float(squares.std(correction=1)) / math.sqrt(len(dots)) if len(dots) > 1 else math.inf
    return Calibration(alpha, alpha * error / bend, len(dots))


def _some(n: int, count: int, seed: int) -> Tensor:
    """`count` of n samples, sorted, by `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:count].sort().values
