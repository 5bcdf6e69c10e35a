"""Fixtures of the report's tests."""

from __future__ import annotations

from typing import Any

import pytest
from fudlr.report import ReportData, plots
from made_up_run import make_curve, make_mask, make_summary


@pytest.fixture
def summary() -> dict[str, Any]:
    return make_summary()


@pytest.fixture
def data(summary: dict[str, Any]) -> ReportData:
    return ReportData(summary, make_mask(), make_curve())


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose plots do not matter are made without, in a tenth of the time."""
    for name in ("tradeoffs", "changes", "scores"):
        monkeypatch.setattr(plots, name, lambda _: ())
