"""Sums of metrics with weights, `"arp + 0.5*hellinger"`, as one thing that should fall.

Each surrogate is turned so that lower is better and divided by its size at the trained adapter θ*:
F(θ) = Σ_j w_j · s_j · F_j(θ) / |F_j(θ*)|, s_j = 1 where lower is better and -1 where higher is. So
the weights compare relative changes, whatever the metrics' units.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError, UsageError
from fudlr.common.factors import Scores, leaf_of
from fudlr.metrics.base import Metric, surrogate
from fudlr.metrics.side import Side
from fudlr.metrics.table import find_metric

_TERM = re.compile(
    r"\s*(?:(?P<weight>\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)\s*\*\s*)?"
    r"(?P<name>[A-Za-z_]\w*)(?:@(?P<k>\d+))?\s*"
)


def metric_gradient(metric: Metric, scores: Scores, side: Side) -> tuple[Tensor, Tensor]:
    """Return a surrogate's value (float64) and its gradient in the scores [n, M], or in the users
    of their factors; both native.

    Raises:
        UsageError: the metric needs what `side` lacks.
        NumericalError: a value that is not finite, no gradient, or a gradient not finite or zero.
    """
    asked = f"the gradient of {metric.name!r} was asked for"
    if lacking := metric.missing(side):
        raise UsageError(asked, lacking, "Name a column of groups, or choose another metric")
    with torch.enable_grad():
        leaf, moving = leaf_of(scores)
        value = surrogate(metric, moving, side)
        if value.numel() != 1 or not torch.isfinite(value).all():
            found = f"its surrogate is {value.tolist() if value.numel() < 4 else list(value.shape)}"
            remedy = "It must be one finite number: check the scores, and the metric if it is yours"
            raise NumericalError(asked, found, remedy)
        grad = None
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if grad is None or not torch.isfinite(grad).all() or not grad.any():
        raise NumericalError(
            asked,
            "it has none" if grad is None else "it is zero or not finite everywhere it counts",
            "Write the surrogate with differentiable operations on the scores (no argmax, topk "
            "indices, .item() or detach); steps and counts need a smooth stand-in",
        )
    return value.detach().reshape(()).double(), grad


@dataclass(frozen=True)
class Term:
    """One summand: a positive weight, a metric, and the K that was written with it, if any."""

    weight: float
    metric: Metric
    k: int | None = None

    def __str__(self) -> str:
        name = self.metric.name if self.k is None else f"{self.metric.name}@{self.k}"
        return name if self.weight == 1 else f"{self.weight:g}*{name}"


@dataclass(frozen=True)
class Objective:
    """A weighted sum of metrics, each relative to its value at the trained adapter."""

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read `"arp + 0.5*hellinger"`; `hellinger@10` steers by the same surrogate.

        Raises:
            UsageError: an unknown metric, a weight that is not positive, or another syntax.
        """
        asked = f"the objective {text!r} was given"
        terms: list[Term] = []
        at = 0
        while at <= len(text):
            match = _TERM.match(text, at)
            if match is None or text[match.end() : match.end() + 1] not in ("", "+"):
                raise UsageError(
                    asked,
                    f"it cannot be read from {text[at:].strip()!r} on",
                    'Write it like "arp + 0.5*hellinger", with positive weights: every metric '
                    "knows its direction, so nothing is ever subtracted",
                )
            weight, metric = float(match["weight"] or 1.0), find_metric(match["name"])
            if not (0 < weight < math.inf) or any(t.metric is metric for t in terms):
                found = f"{match[0].strip()!r} is a weight of nothing, or a metric named twice"
                raise UsageError(asked, found, "Name each metric once, with a weight above 0")
            terms.append(Term(weight, metric, int(match["k"]) if match["k"] else None))
            at = match.end() + 1
        return cls(tuple(terms))

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))

    @property
    def names(self) -> list[str]:
        """The metrics' names, in the order of the terms."""
        return [term.metric.name for term in self.terms]

    def check(self, side: Side) -> None:
        """Refuse before long work what could not be measured.

        Raises:
            UsageError: groups that are missing, or a K that is not the side information's.
        """
        for term in self.terms:
            found = term.metric.missing(side)
            if found is None and term.k not in (None, side.k):
                found = f"the lists have {side.k} items"
            if found:
                remedy = "Name a column of groups that the data have, or another metric or K"
                raise UsageError(f"the objective {term} was given", found, remedy)

    def surrogates(self, scores: Scores, side: Side) -> Tensor:
        """Return each term's surrogate, native and unweighted: [T] float64, differentiable."""
        values = [surrogate(term.metric, scores, side).double() for term in self.terms]
        return torch.stack(values)

    def coefficients(self, start: Tensor) -> Tensor:
        """Return w_j s_j / |F_j(θ*)| from the surrogates [T] at θ*: [T].

        Gradients and influences of the objective are sums of the metrics' own with these.

        Raises:
            NumericalError: a metric that is zero or not finite at θ*, where relative change has no
                meaning.
        """
        zero = (~start.isfinite()) | (start.abs() < 1e-12)
        if zero.any():
            bad = [name for name, is_bad in zip(self.names, zero.tolist(), strict=True) if is_bad]
            raise NumericalError(
                f"the objective {self} was to be divided by its value at the trained adapter",
                f"{', '.join(bad)} is zero or not finite there",
                "A metric that is already zero has nothing to reduce: choose another",
            )
        weights = [t.weight * (1 if t.metric.lower_is_better else -1) for t in self.terms]
        return start.new_tensor(weights) / start.abs()

    def value(self, scores: Scores, side: Side, start: Tensor) -> Tensor:
        """Return F, a scalar that should fall, relative to the surrogates `start` [T] at θ*."""
        return self.coefficients(start.double()) @ self.surrogates(scores, side)

    def gradients(self, scores: Scores, side: Side) -> tuple[Tensor, Tensor]:
        """Return the surrogates [T] (float64) and their gradients [T, n, M], all native; [T, n, w]
        in the users of factors.

        Raises:
            UsageError, NumericalError: as `metric_gradient`.
        """
        self.check(side)
        pairs = [metric_gradient(term.metric, scores, side) for term in self.terms]
        return torch.stack([v for v, _ in pairs]), torch.stack([g for _, g in pairs])
