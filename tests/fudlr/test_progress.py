"""Progress: the lines in a log, on a terminal and when quiet; stage clocks; interruptions."""

from __future__ import annotations

import time

import pytest
from fudlr.progress import StageClock, duration, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets by hand, instead of the real ones."""
    now = [100.0]
    for name in ("monotonic", "perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: now[0])
    return now


def test_elements_pass_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), description="letters")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "letters  3 done" in captured.err


def test_log_lines_have_share_elapsed_and_remaining_time(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(range(4), description="scoring"):
        clock[0] += 10.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "scoring   25%  1/4  10.0 s  30.0 s left"
    assert lines[2] == "scoring   75%  3/4  30.0 s  10.0 s left"
    assert lines[-1] == "scoring  100%  4/4  40.0 s"


def test_a_fast_loop_writes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    list(track(range(1000), description="fast"))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FUDLR_QUIET", "1")
    assert list(track(range(3), description="x")) == [0, 1, 2]
    with StageClock().stage("y"):
        pass
    assert capsys.readouterr().err == ""


def test_terminal_rewrites_one_line(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    for _ in track(range(4), description="scoring"):
        clock[0] += 1.0
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.count("\r") >= 4
    assert "━━━━━━╌" in text
    assert "\x1b[?25l" not in text, "the cursor is never hidden, so it need not be brought back"


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


def test_break_ends_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    steps = track(range(4), description="scoring")
    next(steps)
    next(steps)
    steps.close()
    assert "25%" in capsys.readouterr().err


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


def test_cpu_seconds_leave_sleep_out() -> None:
    stages = StageClock()
    with stages.stage("sleep"):
        time.sleep(0.05)
    assert stages.seconds["sleep"] >= 0.05
    assert stages.cpu_seconds["sleep"] < 0.04


def test_stages_are_announced(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with StageClock().stage("score"):
        clock[0] += 1.5
    assert capsys.readouterr().err.splitlines() == ["score …", "score took 1.50 s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 s"),
        (0.523, "0.52 s"),
        (9.999, "10.0 s"),
        (59.97, "1 min 00 s"),
        (245.2, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800.0, "2 h 10 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
