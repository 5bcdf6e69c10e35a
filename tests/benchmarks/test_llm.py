"""The real run's stages on two layers of the real model: all work, and none is done twice."""

import json

import llm
import pytest
import smollm


@pytest.mark.slow
def test_every_stage_works_and_none_is_done_twice(tmp_path):
    wheel = smollm.cache_folder() / smollm.WHEEL
    if not wheel.is_file():  # 98 MB, and a minute to convert
        pytest.skip(f"{wheel} is not there: `make llm LLM_ARGS=--small` fetches and converts it")
    out = ["--small", "--out", str(tmp_path)]
    llm.main(out)
    found = json.loads((tmp_path / "llm_small.json").read_text(encoding="utf-8"))
    arp, shifts = found["results"]["arp"], found["shifts"]["arp"]
    assert 0 < arp["samples"]["removed"] <= 0.1 * arp["samples"]["training"]
    assert arp["after"]["test_loss"] != arp["before"]["test_loss"] != arp["retrained"]["test_loss"]
    assert -1 <= shifts["cosine"] <= 1
    assert shifts["update"] > 0 < shifts["retraining"]
    adapter = tmp_path / "arp" / "adapter" / "adapter_model.safetensors"
    made = adapter.stat().st_mtime_ns
    llm.main(out)
    assert adapter.stat().st_mtime_ns == made


def test_nothing_is_claimed_where_retraining_may_have_changed_nothing():
    def met(agreement, interval):
        result = {"agreement": {"arp": agreement},
                  "intervals": {"retrained_change": {"arp": interval}}}  # fmt: skip
        return llm.compared(result, "arp")["met"]

    assert met(0.71, [-9, -3]) is True
    assert met(0.69, [-9, -3]) is False
    assert met(1.31, [-9, -3]) is False
    assert met(1.0, [-9, 3]) is None
