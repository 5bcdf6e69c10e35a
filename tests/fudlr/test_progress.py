"""Progress: the lines in a log, on a terminal and when quiet; stage clocks; interruptions."""

from __future__ import annotations

import time

import pytest
from fudlr.common.progress import StageClock, duration, track


@pytest.fixture(autouse=True)
def _not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUDLR_QUIET", raising=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets by hand, instead of the real ones."""
    now = [100.0]
    for name in ("monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: now[0])
    return now


def test_elements_pass_and_share_elapsed_and_remaining_time_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fudlr.common.progress.LOG_INTERVAL", 0.0)
    steps = track("abcd", description="scoring")
    assert [time.sleep(0.01) or each for each in steps] == list("abcd")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "scoring:  25%" in captured.err
    assert "1/4 [00:00<00:00" in captured.err
    assert "4/4" in captured.err


def test_a_log_is_not_flooded(capsys: pytest.CaptureFixture[str]) -> None:
    list(track(range(1000), description="fast"))
    assert capsys.readouterr().err.count("\r") <= 3


def test_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FUDLR_QUIET", "1")
    assert list(track(range(3), description="x")) == [0, 1, 2]
    with StageClock().stage("y"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_passes_through_and_says_how_far_it_came(
    error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    clock = StageClock()

    def work() -> None:
        with clock.stage("score"):
            for step in track(range(4), description="scoring"):
                if step == 1:
                    raise error

    with pytest.raises(error):
        work()
    text = capsys.readouterr().err
    assert "score stopped after" in text
    assert clock.seconds["score"] > 0


def test_stages_accumulate_and_nested_time_counts_once(clock: list[float]) -> None:
    stages = StageClock()
    with stages.stage("outer"):
        clock[0] += 1.0
        with stages.stage("inner"):
            clock[0] += 2.0
        clock[0] += 4.0
    clock[0] += 100.0
    with stages.stage("inner"):
        clock[0] += 8.0
    assert stages.seconds == {"outer": 5.0, "inner": 10.0}
    assert stages.cpu_seconds == stages.seconds


def test_stages_are_announced(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with StageClock().stage("score"):
        clock[0] += 1.5
    assert capsys.readouterr().err.splitlines() == ["score …", "score took 1.50 s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.523, "0.52 s"),
        (9.999, "10.0 s"),
        (59.97, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (7800.0, "2 h 10 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_loop_shows_itself_only_after_its_delay(capsys, monkeypatch):
    monkeypatch.setattr("fudlr.common.progress.LOG_INTERVAL", 0.0)

    def shown(delay):
        for _ in track(range(3), description="short", delay=delay):
            time.sleep(0.05)
        return capsys.readouterr().err

    assert shown(5.0) == ""
    assert "short" in shown(0.02)
