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
    arp, shifts = found["results"]["arp"], found["shifts"]["arp"]
    assert 0 < arp["samples"]["removed"] <= 0.1 * arp["samples"]["training"]
    assert arp["after"]["test_loss"] != arp["before"]["test_loss"] != arp["retrained"]["test_loss"]
    assert -1 <= shifts["cosine"] <= 1
    assert shifts["update"] > 0 < shifts["retraining"]


def test_nothing_is_claimed_where_retraining_may_have_changed_nothing():
    def met(agreement, interval):
        result = {"agreement": {"arp": agreement},
                  "intervals": {"retrained_change": {"arp": interval}}}  # fmt: skip
        return llm.compared(result, "arp")["met"]

    assert met(0.71, [-9, -3]) is True
    assert met(0.69, [-9, -3]) is False
    assert met(1.31, [-9, -3]) is False
    assert met(1.0, [-9, 3]) is None
