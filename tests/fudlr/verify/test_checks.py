"""All checks of `fudlr verify` on one small result: what they find, and that they go on."""

import json

import fudlr
import polars as pl
import pytest
import torch
from fudlr import load_run, verify_result, write_result
from fudlr.verify import Checks, retraining
from fudlr.verify.result import CHECKS
from safetensors.torch import load_file

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def folder(run_folder, tmp_path_factory):
    result = fudlr.debias(load_run(run_folder), lambda_acc=0.0, curve=(), heldout=False)
    return write_result(tmp_path_factory.mktemp("results") / "arp", result)


@pytest.fixture(scope="module")
def found(folder):
    checks = Checks(seeds=(0, 1), lds=6, targeted=4, heldout=True, forgetting=True)
    verify_result(folder, checks=checks)
    return json.loads((folder / "summary.json").read_text())["verification"]


def test_every_check_is_in_the_summary(found):
    assert set(found) == {"null", "seeds", "lds", "heldout", "forgetting"}
    for state in ("after", "retrained"):
        assert {"hellinger", "dp", "hit_gap", "hellinger@5", "dp@5"} <= set(found["null"][state])


def test_targeted_removals_move_the_metric_as_predicted(found, folder):
    """Strong removals in both directions: far above the noise of small random ones."""
    targeted = found["lds"]["targeted"]
    samples = len(pl.read_parquet(folder / "mask.parquet"))
    assert targeted["removed"] == [int(0.1 * samples)] * 4
    assert [value > 0 for value in targeted["predicted"]["arp"]] == [False, True, False, True]
    assert [value > 0 for value in targeted["actual"]["arp"]] == [False, True, False, True]
    assert 0.4 < targeted["agreement"]["arp"]["slope"] < 2
    # Of four, two in each direction, .6 is the least where the directions are told apart; the order
    # within a direction is the noise of retraining, and depends on the processor.
    assert targeted["agreement"]["arp"]["spearman"] > 0.59
    assert len(found["lds"]["random"]["actual"]["arp"]) == 6


def test_the_runs_own_seed_gives_the_retrained_figures(found, folder):
    summary = json.loads((folder / "summary.json").read_text())
    arp = found["seeds"]["metrics"]["arp_soft"]
    assert arp["without"][0] == pytest.approx(summary["retrained"]["arp_soft"], rel=1e-6)
    assert arp["with"][0] == pytest.approx(summary["before"]["arp_soft"], rel=1e-4)
    assert arp["mean"] == pytest.approx(sum(arp["change"]) / 2)
    assert arp["deviation"] > 0
    assert arp["mean"] < 0


def test_the_runs_own_seed_goes_the_retrainings_way(found, folder, run_folder):
    """The other seed goes another way; the update is as near to the run's own as the files say."""

    def read(path):
        matrices = load_file(path / "adapter_model.safetensors")
        return torch.cat([matrices[name].flatten().double() for name in sorted(matrices)])

    trained = read(run_folder / "adapter")
    ways = read(folder / "adapter") - trained, read(folder / "retrained") - trained
    cosine = float(torch.cosine_similarity(*ways, dim=0))
    shifts = found["seeds"]["shifts"]
    own, other = shifts["cosine_retrained"]
    assert own == pytest.approx(1, abs=1e-4)
    assert 0 < other < 0.99
    assert 0.05 < cosine < 1
    assert shifts["update_retrained"] == pytest.approx(cosine, abs=1e-4)
    assert shifts["cosine_update"][0] == pytest.approx(shifts["update_retrained"], abs=1e-4)


def test_held_out_users_have_figures_intervals_and_a_null(found):
    held = found["heldout"]
    assert held["before"]["arp"] > held["after"]["arp"]
    for part in ("change", "retrained_change"):
        low, high = held["intervals"][part]["arp"]
        assert low < high < 0
    assert set(held["null"]) == {"before", "after", "retrained"}
    assert held["null"]["before"]["hellinger"]["observed"] == pytest.approx(
        held["before"]["hellinger"], rel=1e-4
    )


def test_training_on_what_was_unlearned_brings_it_back(found):
    forgetting = found["forgetting"]
    assert len(forgetting["trained_on"]) == 8
    start = forgetting["start"]
    assert start["updated"]["loss_of_forgotten"] > start["trained"]["loss_of_forgotten"]
    losses = {
        (each["start"], each["samples"], each["epochs"]): each["figures"]["loss_of_forgotten"]
        for each in forgetting["trained_on"]
    }
    for adapter in ("updated", "retrained"):
        assert losses[adapter, "forgotten", 2] < losses[adapter, "kept", 2]
        assert losses[adapter, "forgotten", 2] < start[adapter]["loss_of_forgotten"]


def test_every_check_is_in_the_report(folder, found):
    page = (folder / "report.html").read_text()
    for title in ("Removals, really retrained", "What returns", "Held-out users, cross-fitted",
                  "Change by removal over seeds 0, 1",
                  "Gaps with the groups permuted"):  # fmt: skip
        assert f"<h3>{title}</h3>" in page
    arp = found["lds"]["random"]["agreement"]["arp"]
    low, high = arp["slope_interval"]
    cells = (f"{arp['spearman']:.2f}", f"{arp['slope']:.2f}", f"{low:.2f} … {high:.2f}")
    start = page.index("Removals, really retrained")
    for cell in cells:
        assert f">{cell}</td>" in page[start : page.index("Change by removal")]
    for each in found["forgetting"]["trained_on"]:
        assert f">{each['returned']['arp']:+.0%}<" in page
    assert f">{found['null']['retrained']['hellinger']['p']:.2g}<" in page


def test_a_second_call_retrains_nothing(folder, found, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("retrained again")

    monkeypatch.setattr(retraining, "train_adapter", refuse)
    data = verify_result(folder, checks=Checks(lds=6))
    again = json.loads(json.dumps(data.summary["verification"]))
    assert again["lds"]["random"] == found["lds"]["random"]
    assert data.summary["verification"]["seeds"] == found["seeds"]


def test_an_interrupted_check_leaves_the_earlier_proof_whole(found, folder, monkeypatch):
    def interrupted(case):
        raise KeyboardInterrupt

    def written():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = written()
    monkeypatch.setitem(CHECKS, "seeds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify_result(folder, checks=Checks(seeds=(0,)))
    assert written() == before
