"""Every curvature with defaults otherwise: none may cost accuracy unsaid."""

import fudlr
import pytest
from fudlr import load_run
from fudlr.common.errors import RefusedError
from fudlr.influence.curvature import CURVATURES
from fudlr.influence.update import finish
from fudlr.pipeline import evidence


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder)


def lost(summary):
    """Share of NDCG@5 that the update cost, and whether a diagnostic says so."""
    share = 1 - summary["after"]["ndcg@5"] / summary["before"]["ndcg@5"]
    said = {each["name"]: each["severity"] for each in summary["diagnostics"]}
    return share, said["ranking"] in ("warn", "refuse")


@pytest.mark.parametrize("curvature", sorted(CURVATURES))
def test_no_curvature_costs_accuracy_unsaid(run, curvature):
    summary = fudlr.debias(run, curvature=curvature, damping=None, curve=(), heldout=False).summary
    assert summary["config"]["debias"]["curvature"] == curvature
    rescaled = "rescaled" in summary["update"]
    assert rescaled != CURVATURES[curvature].couples_layers
    if rescaled:
        assert any("entries between layers" in said for said in summary["warnings"])
    share, said = lost(summary)
    assert share < 0.2 or said


@pytest.mark.parametrize(
    "curvature", [name for name, kind in CURVATURES.items() if not kind.couples_layers]
)
def test_what_the_rescaling_prevents_would_be_refused(run, curvature, monkeypatch):
    """Thirty times its step: no update that costs over a fifth of NDCG is given unsaid."""
    plain = evidence.rescaled

    def blind(*arguments):
        found = plain(*arguments)
        return finish(arguments[1], 30 * found.delta, found.solution)

    monkeypatch.setattr(evidence, "rescaled", blind)
    options = {"curvature": curvature, "lambda_acc": 0.0, "curve": (), "heldout": False}
    with pytest.raises(RefusedError, match="diagnostic"):
        fudlr.debias(run, **options)
    share, said = lost(fudlr.debias(run, force=True, **options).summary)
    assert said or share < 0.2
