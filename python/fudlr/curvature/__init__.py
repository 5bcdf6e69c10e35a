"""Curvatures: each a page, each a product with a symmetric matrix, none with damping."""

from __future__ import annotations

from collections.abc import Callable

from fudlr.curvature.base import Curvature
from fudlr.curvature.empirical_fisher import EmpiricalFisher
from fudlr.curvature.ggn import GGN
from fudlr.curvature.hessian import Hessian
from fudlr.curvature.identity import Identity

CURVATURES: dict[str, Callable[..., Curvature]] = {
    EmpiricalFisher.name: EmpiricalFisher,
    GGN.name: GGN,
    Hessian.name: Hessian,
    Identity.name: Identity,
}
"""Every curvature by the name that options and files use."""

__all__ = ["CURVATURES", "GGN", "Curvature", "EmpiricalFisher", "Hessian", "Identity"]
