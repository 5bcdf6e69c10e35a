"""Curvatures: each a product with a symmetric matrix, none with damping.

A new one is a class in a file of its own and a line in `CURVATURES`.
"""

from __future__ import annotations

from fudlr.influence.curvature.ekfac import EKFAC
from fudlr.influence.curvature.parts import Curvature, Parts
from fudlr.influence.curvature.products import GGN, EmpiricalFisher, Hessian, Identity

CURVATURES: dict[str, type[Curvature]] = {
    "empirical_fisher": EmpiricalFisher,
    "ggn": GGN,
    "hessian": Hessian,
    "ekfac": EKFAC,
    "identity": Identity,
}
"""Every curvature by the name that options and files use."""

__all__ = ["CURVATURES", "Curvature", "EmpiricalFisher", "Parts"]
