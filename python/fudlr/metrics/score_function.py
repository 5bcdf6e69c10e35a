"""Gradients of metrics of lists that have none: a score-function estimator.

A metric h of the lists L that users see (a count, a threshold, any business rule) is a step
function of the scores. Its expectation over lists drawn from them is smooth. User u's list is
drawn by Plackett and Luce's model (Gumbel top-K: Kool, van Hoof, Welling 2019, arXiv 1903.06059),

    P(L_u) = Π_k e^(s_k/τ) / (Σ_{j not seen, not among l_1 … l_{k−1}} e^(s_j/τ))
    F(s) = E h(L),   ∂F/∂s_u = E [(h(L) − b_u) ∂ log P(L_u)/∂s_u]

for any b_u that does not depend on L_u (Williams 1992, REINFORCE). With R draws the estimate is the
mean over draws; it is unbiased whatever b is, and b decides its variance (control variates):

| what h is | b_u in draw r |
|---|---|
| one value a prompt, the metric their mean | mean of the prompt's value in the other draws |
| a `SummedMetric` (coverage, Gini, ...) | h with u's list from draw r + 1 in place of its own |
| one number | mean of h in the other draws |

The first two leave a prompt its own effect alone. In the last every prompt's lists are noise to
all others, and the variance grows with their number: give one value a prompt where there is one.
The derivative of log P needs no loop over items: with C_k = Σ_{i ≤ k} 1/Z_i over the positions'
normalisers, ∂ log P/∂s_j = ([j in L] − e^(s_j/τ) C_{position of j, or K}) / τ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.metrics.base import Metric, SummedMetric, repeated
from fudlr.metrics.scores import Rows, check_scores
from fudlr.metrics.side import Side


class DrawnLists(Metric):
    """The expectation of a metric of lists over lists drawn from the scores; see the module.

    Args:
        name: As the objective and the files write it.
        hard: (top [n, K], side) to one value a prompt [n], or to a number; or a metric of the
            table, whose hard value is then steered instead of its surrogate.
        lower_is_better: Its direction.
        draws: R, at least 2; the variance falls as 1/R, the time grows with it.
        seed: Of the draws: the same scores give the same gradient.
        temperature: τ; smaller is nearer to the list that is shown, and noisier.
        control: Whether b is as the table has it; 0 without, which is only there to be compared.

    Raises:
        UsageError: Fewer than two draws, or a temperature that is not positive.
    """

    soft_suffix = "_drawn"

    def __init__(
        self,
        name: str,
        hard: Rows | Metric,
        lower_is_better: bool,
        *,
        draws: int = 32,
        seed: int = 0,
        temperature: float = 1.0,
        control: bool = True,
    ) -> None:
        if draws < 2 or not temperature > 0:
            raise UsageError(
                f"the metric {name!r} was to be estimated from {draws} draws at {temperature=}",
                "a control variate needs a second draw, and a temperature is above 0",
                "Give draws of at least 2 (32 is the default) and a positive temperature",
            )
        self.name, self.lower_is_better, self._of = name, lower_is_better, hard
        self._draws, self._seed = draws, seed
        self._temperature, self._control = temperature, control

    def missing(self, side: Side) -> str | None:
        """Say what the metric that is meant needs and `side` lacks, or None."""
        return self._of.missing(side) if isinstance(self._of, Metric) else None

    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """Return the value on the lists `top` [n, K]; whole `weights` repeat their rows."""
        if isinstance(self._of, Metric):
            return self._of.hard(top, side, weights)
        return self._values(*repeated(top, side, weights)).mean()

    def surrogate(self, scores: Tensor, side: Side) -> Tensor:
        """Return the mean over the draws; its gradient in `scores` [n, M] is the estimate."""
        check_scores(scores, side)
        with torch.no_grad():
            value, gradient = self.estimate(scores, side)
        # Linear in the scores: autograd finds the value and the gradient that were estimated.
        tied = (gradient.to(scores) * (scores - scores.detach())).sum()
        return value.to(scores) + tied

    def estimate(self, scores: Tensor, side: Side) -> tuple[Tensor, Tensor]:
        """Return the mean of h over the draws, and the estimated gradient [n, M], both float64."""
        logits = scores.detach().double().masked_fill(side.mask, -torch.inf) / self._temperature
        mass = (logits - logits.amax(1, keepdim=True)).exp()
        tops = self._draw(logits, side.k)
        values, gains = self._gains(tops, side)
        share = gains / (len(tops) * self._temperature)
        below = torch.zeros_like(mass[:, 0])  # Σ over draws of gain · C_K, what items outside pay
        gradient = torch.zeros_like(mass)
        for top, gain in zip(tops, share, strict=True):
            steps = _inverse_normalisers(mass, top).cumsum(1)
            below += gain * steps[:, -1]
            own = mass.gather(1, top)
            inside = 1 + own * (steps[:, -1:] - steps)
            gradient.scatter_add_(1, top, gain[:, None] * inside)
        return values.mean(), gradient - mass * below[:, None]

    def _draw(self, logits: Tensor, k: int) -> list[Tensor]:
        """R times one list [n, K] a prompt, in the order drawn."""
        generator = torch.Generator(logits.device).manual_seed(self._seed)
        tops = []
        for _ in range(self._draws):
            noise = torch.empty_like(logits).exponential_(generator=generator)
            tops.append((logits - noise.log()).topk(k, dim=1).indices)
        return tops

    def _gains(self, tops: list[Tensor], side: Side) -> tuple[Tensor, Tensor]:
        """h of each draw [R], and h − b of each draw and prompt [R, n]; 0 where h is flat."""
        if isinstance(self._of, SummedMetric) and self._control:
            return self._swapped(self._of, tops, side)
        values = torch.stack([self._values(top, side) for top in tops])
        gains = _less_others(values) if self._control else values
        n = len(side.target)
        if values.dim() == 2:
            return values.mean(1), gains / n
        return values, gains[:, None].expand(len(tops), n)

    def _swapped(
        self, metric: SummedMetric, tops: list[Tensor], side: Side
    ) -> tuple[Tensor, Tensor]:
        """h, and h less what it would be with one prompt's list from the next draw."""
        total = torch.tensor([float(len(side.target))], dtype=torch.float64, device=tops[0].device)
        rows = metric.hard_rows(tops[0], side).double()
        first, values, gains = rows, [], []
        for following in [*tops[1:], None]:
            other = first if following is None else metric.hard_rows(following, side).double()
            sums = rows.sum(0, keepdim=True)
            value = metric.finish(sums, total, side)
            pairs = zip(rows.split(256), other.split(256), strict=True)
            swapped = [
                metric.finish(sums - mine + theirs, total.expand(len(mine)), side)
                for mine, theirs in pairs
            ]
            without = torch.cat(swapped)
            values.append(value[0])
            # Where the list makes no difference, rounding of the sums must not make one.
            same = torch.isclose(without, value, rtol=1e-12, atol=0.0)
            gains.append(torch.where(same, 0.0, value - without))
            rows = other
        return torch.stack(values), torch.stack(gains)

    def _values(self, top: Tensor, side: Side) -> Tensor:
        """What the metric or function gives for lists, as float64: a number, or [n]."""
        of = self._of
        value = of.hard(top, side) if isinstance(of, Metric) else of(top, side)
        found = torch.as_tensor(value).double()
        if found.dim() > 1 or (found.dim() == 1 and len(found) != len(top)):
            raise UsageError(
                f"the metric {self.name!r} was asked for the value of {len(top)} lists",
                f"it gave {list(found.shape)}",
                "Return one number, or one value a prompt, [n]",
            )
        return found


from_lists = DrawnLists


def _less_others(values: Tensor) -> Tensor:
    """Each draw's values `[R, …]` less the mean of the other draws'; exactly 0 where all agree."""
    away = values - values[:1]
    return (away - away.mean(0)) * (len(values) / (len(values) - 1))


def _inverse_normalisers(mass: Tensor, top: Tensor) -> Tensor:
    """1 / Z_k of the lists `top` [n, K]: Z_k is the mass [n, M] not chosen before position k.

    Summed from the end, so that small remainders are not differences of large sums.
    """
    own = mass.gather(1, top)
    rest = mass.scatter(1, top, 0.0).sum(1, keepdim=True)
    left = own.flip(1).cumsum(1).flip(1) + rest
    return 1 / left.clamp_min(torch.finfo(mass.dtype).tiny)
