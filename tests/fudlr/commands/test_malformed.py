"""Malformed files: an error in words, nothing changed, nothing left, nothing misread."""

import malformed
import pytest

TRIED = 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malformed") / "sound"
    malformed.make(folder)
    return folder


def test_malformed_files_are_refused_in_words(sound, tmp_path):
    outcomes = [malformed.try_case(sound, tmp_path / "work", seed) for seed in range(TRIED)]
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    assert not wrong, "\n".join(f"{o.case}: {o.wrong} ({o.words[:300]})" for o in wrong)
    assert sum(outcome.code != 0 for outcome in outcomes) > TRIED / 2
