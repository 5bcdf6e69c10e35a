"""Curvatures: each a page, each a product with a symmetric matrix, none with damping."""

from __future__ import annotations

from typing import Protocol

from fudlr.influence.curvature.base import Curvature, Invertible, Parts
from fudlr.influence.curvature.block_fisher import BlockFisher
from fudlr.influence.curvature.datainf import DataInf
from fudlr.influence.curvature.ekfac import EKFAC
from fudlr.influence.curvature.empirical_fisher import EmpiricalFisher
from fudlr.influence.curvature.ggn import GGN
from fudlr.influence.curvature.hessian import Hessian
from fudlr.influence.curvature.identity import Identity
from fudlr.influence.curvature.kfac import KFAC
from fudlr.influence.curvature.true_fisher import TrueFisher


class Kind(Protocol):
    """A class of curvatures as the table knows it."""

    name: str
    semidefinite: bool
    couples_layers: bool

    def make(self, parts: Parts) -> Curvature:
        """The curvature of these parts."""
        ...


CURVATURES: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        EmpiricalFisher,
        TrueFisher,
        GGN,
        Hessian,
        KFAC,
        EKFAC,
        BlockFisher,
        DataInf,
        Identity,
    )
}
"""Every curvature by the name that options and files use."""

__all__ = [
    "CURVATURES",
    "EKFAC",
    "GGN",
    "KFAC",
    "BlockFisher",
    "Curvature",
    "DataInf",
    "EmpiricalFisher",
    "Hessian",
    "Identity",
    "Invertible",
    "Kind",
    "Parts",
    "TrueFisher",
]
