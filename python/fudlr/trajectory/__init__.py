"""A training as it went, kept batch by batch, and gone again without some of its samples."""

from fudlr.trajectory.replay import Replay
from fudlr.trajectory.steps import FOLDER, Step, Steps, StepWriter

__all__ = ["FOLDER", "Replay", "Step", "StepWriter", "Steps"]
