"""Real retraining, held against what an update says and gives."""

from fudlr.verify.case import Checks
from fudlr.verify.lds import Agreement, agreement, random_removals, targeted_removals
from fudlr.verify.removals import Changes, measure_changes
from fudlr.verify.result import Verification, verify, verify_result
from fudlr.verify.retraining import Job, Retrained, default_processes, removal, retrain

__all__ = [
    "Agreement",
    "Changes",
    "Checks",
    "Job",
    "Retrained",
    "Verification",
    "agreement",
    "default_processes",
    "measure_changes",
    "random_removals",
    "removal",
    "retrain",
    "targeted_removals",
    "verify",
    "verify_result",
]
