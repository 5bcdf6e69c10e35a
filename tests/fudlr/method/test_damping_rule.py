"""The damping that nobody need choose: λ at a stationary point, 3 λ short of one."""

import pytest
import torch
from fudlr.common.errors import NumericalError
from fudlr.pipeline.evidence import choose_damping, stationarity

START, THETA = torch.zeros(8), torch.arange(8.0)
L2 = 0.1
PART = L2 * (THETA - START)


@pytest.mark.parametrize(
    ("left", "damping"), [(0.0, L2), (0.05, L2), (0.2, 3 * L2), (0.4, 3 * L2), (1.0, 3 * L2)]
)
def test_the_gradient_that_is_left_decides(left, damping):
    left_over = -PART * (1 - left) / (1 + left)
    assert stationarity(L2, left_over, THETA, START) == pytest.approx(left, abs=1e-6)
    assert choose_damping(L2, left_over, THETA, START) == pytest.approx(damping)


def test_a_gradient_that_adds_to_the_regulariser_is_no_optimum():
    """Only where ḡ points against λ's part do they cancel."""
    assert stationarity(L2, PART, THETA, START) == pytest.approx(1)
    assert stationarity(L2, -PART, THETA, START) == 0


def test_without_a_penalty_nothing_sets_the_scale():
    with pytest.raises(NumericalError, match="--damping"):
        choose_damping(0.0, PART, THETA, START)
