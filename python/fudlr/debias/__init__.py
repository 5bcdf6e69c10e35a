"""The main job: find the samples that cause the bias, and take their effect out of the adapter."""

from fudlr.debias.audit import Audit
from fudlr.debias.removal import forget
from fudlr.debias.steps import CURVE, Result, debias
from fudlr.debias.summary import cost, intervals, plain_nulls

__all__ = ["CURVE", "Audit", "Result", "cost", "debias", "forget", "intervals", "plain_nulls"]
