"""A training as it went, kept batch by batch, and gone again without some of its samples."""

from fudlr.gradients.steps import FOLDER, Step, Steps, StepWriter
from fudlr.influence.unroll.replay import Replay

__all__ = ["FOLDER", "Replay", "Step", "StepWriter", "Steps"]
