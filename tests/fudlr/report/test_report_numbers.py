"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from fudlr.report.numbers import MISSING, figure, label, relative, share, signed, span


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (229.4321, "229.4"),
        (12345.6, "12,346"),
        (0.062738, "0.06274"),
        (-0.0068, "−0.006800"),
        (0.0, "0.000"),
        (3.21e-7, "3.2 × 10⁻⁷"),
        (None, MISSING),
        (math.nan, MISSING),
        (math.inf, MISSING),
    ],
)
def test_figure(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_zero_has_no_sign() -> None:
    assert figure(-0.0001, 2) == "0.00"


@pytest.mark.parametrize(
    ("interval", "like", "text"),
    [
        ((224.81, 234.04), 229.4, "224.8–234.0"),
        ((5.9203, 6.1621), 6.041, "5.92–6.16"),
        ((-0.0012, 0.0034), 0.001, "−0.0012 to 0.0034"),
        ((2.0, 2.0), 2.0, "2.000–2.000"),
        (None, 1.0, ""),
    ],
)
def test_span_is_as_precise_as_it_is_wide(
    interval: tuple[float, float] | None, like: float, text: str
) -> None:
    assert span(interval, like) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (-0.0923, "−9.2%"),
        (1.342, "+134%"),
        (-0.00023, "−0.02%"),
        (1e-7, "±0%"),
        (0.0, "±0%"),
        (None, MISSING),
    ],
)
def test_signed(change: float | None, text: str) -> None:
    assert signed(change) == text


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(2.0, 1.0, -0.5), (-2.0, -1.0, 0.5), (0.0, 1.0, None), (None, 1.0, None), (1.0, None, None)],
)
def test_relative(before: float | None, after: float | None, change: float | None) -> None:
    assert relative(before, after) == change


@pytest.mark.parametrize(("value", "text"), [(0.1, "10%"), (0.004, "0.4%"), (0.0999, "10%")])
def test_share(value: float, text: str) -> None:
    assert share(value) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ndcg@10", "NDCG@10"),
        ("hellinger@10", "Hellinger@10"),
        ("val_loss", "Validation loss"),
        ("gini", "Gini"),
        ("arp_soft", "ARP (catalogue)"),
        ("auc_tail_gap", "AUC tail gap"),
    ],
)
def test_label(name: str, text: str) -> None:
    assert label(name) == text
