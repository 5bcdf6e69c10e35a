"""What retraining is expected to change, said before it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fudlr.diagnostics.update import BENT

SHARES = {"unrolled": (0.89, 1.14)}
"""By update rule: retraining's share of the update's change of a steered surrogate, as an interval
that a further request's lies in with 90%; for masks that the influence chose, from 14 requests that
were really retrained (`python benchmarks/error_bar.py`, error_bar.json)."""


def expected(
    rule: str,
    bend: float | None,
    steered: Iterable[str],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> dict[str, list[float]]:
    """The interval of retraining's change of each steered surrogate that the update changed; none
    for other rules, and none where the loss bends as in no training that it was made from.

    Args:
        rule: Of the update.
        bend: Of the update, see `fudlr.diagnostics`; None where it is not known.
        steered: Names of the surrogates in `before` and `after`.
        before, after: Figures of the trained and of the updated adapter.
    """
    if rule not in SHARES or (bend is not None and bend > BENT):
        return {}
    changes = {name: after[name] - before[name] for name in steered}
    return {
        name: sorted(share * change for share in SHARES[rule])
        for name, change in changes.items()
        if change
    }
