"""The table of checks: what to hold a result against besides one retraining.

One file and one line here make a check; each takes a `Case` and returns plain data, which
`summary.json` keeps under `verification`, or None where it was not asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fudlr.verify.case import Case
from fudlr.verify.forgetting import forgetting
from fudlr.verify.heldout import heldout
from fudlr.verify.planted import planted
from fudlr.verify.removals import leave_one_out, removals
from fudlr.verify.seeds import seeds

Check = Callable[[Case], dict[str, Any] | None]

CHECKS: dict[str, Check] = {
    "planted": planted,
    "seeds": seeds,
    "heldout": heldout,
    "forgetting": forgetting,
    "lds": removals,
    "loo": leave_one_out,
}
"""By name, in the order in which they run: the cheapest first."""
