"""Numbers as people read them."""

from __future__ import annotations

import math

from fudlr.report.numbers import MISSING, figure, label, relative, share, signed, span


def test_figures_have_four_digits() -> None:
    for value, text in (
        (229.4321, "229.4"),
        (12345.6, "12,346"),
        (0.062738, "0.06274"),
        (-0.0068, "−0.006800"),
        (0.0, "0.000"),
        (3.21e-7, "3.2 × 10⁻⁷"),
        (None, MISSING),
        (math.nan, MISSING),
        (math.inf, MISSING),
    ):
        assert figure(value) == text
    assert figure(-0.0001, 2) == "0.00"  # zero has no sign


def test_a_span_is_as_precise_as_it_is_wide() -> None:
    for interval, like, text in (
        ((224.81, 234.04), 229.4, "224.8–234.0"),
        ((5.9203, 6.1621), 6.041, "5.92–6.16"),
        ((-0.0012, 0.0034), 0.001, "−0.0012 to 0.0034"),
        ((2.0, 2.0), 2.0, "2.000–2.000"),
        (None, 1.0, ""),
    ):
        assert span(interval, like) == text


def test_changes_have_a_sign_and_shares_none() -> None:
    for change, text in (
        (-0.0923, "−9.2%"),
        (1.342, "+134%"),
        (-0.00023, "−0.02%"),
        (1e-7, "±0%"),
        (0.0, "±0%"),
        (None, MISSING),
    ):
        assert signed(change) == text
    for value, text in ((0.1, "10%"), (0.004, "0.4%"), (0.0999, "10%")):
        assert share(value) == text


def test_relative() -> None:
    assert relative(2.0, 1.0) == -0.5
    assert relative(-2.0, -1.0) == 0.5
    assert relative(0.0, 1.0) is relative(None, 1.0) is relative(1.0, None) is None


def test_labels() -> None:
    for name, text in (
        ("ndcg@10", "NDCG@10"),
        ("hellinger@10", "Hellinger@10"),
        ("val_loss", "Validation loss"),
        ("gini", "Gini"),
        ("arp_soft", "ARP (catalogue)"),
        ("auc_tail_gap", "AUC tail gap"),
    ):
        assert label(name) == text
