"""The trade-off curve of many users is measured on some of them, and stands where all would."""

import fudlr
import pytest
from fudlr import load_run
from fudlr.debias import steps


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder)


def test_a_curve_of_some_users_starts_from_everybodys_figures(run, monkeypatch):
    options = {"curve": (0.05, 0.1), "heldout": False, "force": True}
    whole = fudlr.debias(run, **options)
    monkeypatch.setattr(steps, "CURVE_USERS", 60)
    some = fudlr.debias(run, **options)
    assert [point["users"] for point in some.curve] == [60, 60]
    assert whole.curve[0]["users"] == len(whole.test.samples)
    # At the request's own budget all users' curve is the request's own figure.
    assert whole.curve[1]["predicted"]["arp_soft"] == pytest.approx(
        whole.summary["after"]["arp_soft"], rel=1e-6
    )
    # Changes of some users: of the same sign and size, and not the same.
    before = whole.summary["before"]["arp_soft"]
    of_all = whole.curve[1]["predicted"]["arp_soft"] - before
    of_some = some.curve[1]["predicted"]["arp_soft"] - before
    assert of_some != of_all
    assert 0.5 < of_some / of_all < 2


def test_most_popular_is_in_the_summary(run):
    summary = fudlr.debias(run, curve=(), heldout=False, force=True).summary
    assert summary["most_popular"]["arp"] > summary["before"]["arp"]
