"""Every curvature with defaults otherwise: none may cost accuracy unsaid."""

from dataclasses import replace

import fudlr
import pytest
from fudlr import load_run, removal
from fudlr.common.errors import RefusedError
from fudlr.influence.curvature import CURVATURES


def lost(summary):
    """Share of NDCG@5 that the update cost, and whether a signature says so."""
    share = 1 - summary["after"]["ndcg@5"] / summary["before"]["ndcg@5"]
    said = {each["name"]: each["severity"] for each in summary["signatures"]}
    return share, said["ranking"] in ("warn", "refuse")


@pytest.mark.parametrize("curvature", sorted(CURVATURES))
def test_no_curvature_costs_accuracy_unsaid(run_folder, curvature):
    summary = fudlr.debias(
        load_run(run_folder), curvature=curvature, damping=None, curve=(), heldout=False
    ).summary
    assert summary["config"]["debias"]["curvature"] == curvature
    calibrated = "calibration" in summary["update"]
    assert calibrated != CURVATURES[curvature].couples_layers
    if calibrated:
        assert any("entries between layers" in said for said in summary["warnings"])
        assert summary["update"]["calibration"]["samples"] > 0
    share, said = lost(summary)
    assert share < 0.2 or said


@pytest.mark.parametrize(
    "curvature", [name for name, kind in CURVATURES.items() if not kind.couples_layers]
)
def test_what_the_calibration_prevents_would_be_refused(run_folder, curvature, monkeypatch):
    """Thirty times its step: no update that costs over a fifth of NDCG is given unsaid."""
    plain = removal.calibrate

    def blind(*arguments):
        found = plain(*arguments)
        return replace(found, alpha=30 * found.alpha)

    monkeypatch.setattr(removal, "calibrate", blind)
    options = {"curvature": curvature, "lambda_acc": 0.0, "curve": (), "heldout": False}
    with pytest.raises(RefusedError, match="signature"):
        fudlr.debias(load_run(run_folder), **options)
    share, said = lost(fudlr.debias(load_run(run_folder), force=True, **options).summary)
    assert said == (share > 0.2)
