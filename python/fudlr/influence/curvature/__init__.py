"""Curvatures: each a file, each a product with a symmetric matrix, none with damping.

A new one is a class in a file of its own and a line in `CURVATURES`.
"""

from __future__ import annotations

from fudlr.influence.curvature.base import Curvature, Kind, Parts
from fudlr.influence.curvature.ekfac import EKFAC
from fudlr.influence.curvature.empirical_fisher import EmpiricalFisher
from fudlr.influence.curvature.ggn import GGN
from fudlr.influence.curvature.hessian import Hessian
from fudlr.influence.curvature.identity import Identity

CURVATURES: dict[str, Kind] = {
    "empirical_fisher": EmpiricalFisher,
    "ggn": GGN,
    "hessian": Hessian,
    "ekfac": EKFAC,
    "identity": Identity,
}
"""Every curvature by the name that options and files use."""

__all__ = [
    "CURVATURES",
    "EKFAC",
    "GGN",
    "Curvature",
    "EmpiricalFisher",
    "Hessian",
    "Identity",
    "Kind",
    "Parts",
]
