"""The run's training repeated without some samples, by the rows that it left and the model's own
curvature where that leads.

    θ(m; c)   the unrolled training, its Fisher products times c  (`influence.unroll`)
    c = (uᵀ GGN u) / (uᵀ F u),   u = what the rows see of θ(m; 1) − θ*

and u as far as the rows' sketches keep it. Fisher's matrix F of the labels and the Gauss-Newton
matrix agree along the shifts of random removals. A mask is chosen by the influence, in which F's
inverse is: it leads where F has too little curvature, and the shift is too long. One product of the
model's over some training samples says by how much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.parallel import ranks
from fudlr.gradients.store import Store
from fudlr.influence.unroll import Exact, Unrolled
from fudlr.pipeline.plan import Plan, cannot_unroll, why_not_unrolled
from fudlr.run import Run
from fudlr_ext import EngineError
from fudlr_ext.reducers import Dots, Sums

TOGETHER = 2**26
"""Numbers of adapters that are unrolled at a time: of each, Adam's moments and as much again."""
PROBED = 512
"""Training samples over which the model's curvature is measured."""
ALIKE = 2.0
"""c is that of another mask which takes out at most so many times the samples, or so few. It is a
figure of the training and of how many samples go, hardly of the objective (docs/method.md)."""
NEAR, FAR = 1.15, 2.0
"""Of one mask, θ(m; c) is taken from the line through θ(m; 1) and θ(m; NEAR), at most FAR times as
far as between them: to a hundredth of the shift, for the cost of a third of another pass."""


@dataclass
class Retraining:
    """A run's training, to be repeated without some samples.

    Attributes:
        run: Whose.
        unrolled: The training; its last step led to the run's adapter.
        exact: Gradients of the samples, in place of their sketches alone. These are for samples
            that were named, along whose shifts both curvatures agree.
        known: c by the number of samples that a mask took out.
    """

    run: Run
    unrolled: Unrolled
    exact: Exact | None = None
    known: dict[int, float] = field(default_factory=dict)

    def without(self, masks: Tensor) -> tuple[Tensor, float, list[str]]:
        """Shifts from θ* `[k, d]` without the samples of each of `masks` `[k, n]`, all of one
        request; c, and what to say of it. The model holds θ* before and after."""
        counts = masks.sum(1)
        ratio, said, shifts = 1.0, list[str](), None
        if self.exact is None and bool(counts.any()):
            count = int(counts.max())
            known = (c for n, c in self.known.items() if n <= ALIKE * count <= ALIKE**2 * n)
            if (found := next(known, None)) is not None:
                ratio = found
            else:
                # Both share every pass over the rows.
                ends = self._shifts(masks[counts.argmax()].expand(2, -1), torch.tensor([1, NEAR]))
                ratio, said = self._stiffness(ends[:1], count)
                way = (ratio - 1) / (NEAR - 1)
                if len(masks) == 1 and abs(way) <= FAR:
                    shifts = torch.lerp(ends[:1], ends[1:], way)
        if shifts is None:
            shifts = self._shifts(masks, torch.full((len(masks),), ratio))
        if self.exact is not None:
            self.run.engine.load(self.run.theta)
        return shifts, ratio, said

    def _shifts(self, masks: Tensor, ratios: Tensor) -> Tensor:
        """θ(m; c) − θ* `[k, d]` for each of `masks` `[k, n]` and its c of `ratios` `[k]`."""
        most = max(1, TOGETHER // self.run.theta.numel())
        parts = zip(masks.split(most), ratios.split(most), strict=True)
        ends = [self.unrolled.update(each, c[:, None], self.exact) for each, c in parts]
        return torch.cat(ends).to(self.run.theta) - self.run.theta

    def bend(self, shift: Tensor, ratio: float, gradient: Tensor, rise: float) -> float | None:
        """2 (L(θ* + δ) − L(θ*) − ⟨∇L(θ*), δ⟩) over c uᵀ F u, for δ `shift` `[d]` and the `gradient`
        `[d]` and `rise` of a loss: 1 where it is as quadratic as the update has it; None where the
        rows see nothing of δ."""
        taken = ratio * float(self.unrolled.curvature(shift[None])[1])
        slope = float(gradient.to(shift) @ shift)
        return 2 * (rise - slope) / taken if taken else None

    def _stiffness(self, shift: Tensor, count: int) -> tuple[float, list[str]]:
        """c along `shift` `[1, d]` without so many samples; 1 where the rows see nothing of it,
        and, with the reason, where the model does not say."""
        seen, (fisher,) = self.unrolled.curvature(shift)
        if not fisher:
            return 1.0, []
        try:
            model = _gauss_newton(self.run, seen.to(self.run.theta))
            reason = f"it is {model:.3g} along the update"
        except (EngineError, RuntimeError) as error:  # operations without a second derivative too
            model, reason = 0.0, str(error).splitlines()[0]
        ratio = model / float(fisher)
        if 0 < ratio < float("inf"):
            self.known[count] = ratio
            return ratio, []
        return 1.0, [
            f"The model's own curvature could not be used ({reason}); the recorded gradients' "
            "stands alone, and the update may be too long (docs/method.md)."
        ]


def _gauss_newton(run: Run, vector: Tensor) -> float:
    """The mean of vᵀ GGN v for `vector` `[1, d]`, over training samples at equal distances, which
    several ranks share."""
    samples, recommender = run.split.train, run.recommender
    index = torch.linspace(0, len(samples) - 1, min(PROBED, len(samples))).long()
    parts = index[ranks().part(len(index))].split(run.config.train.batch)
    total = torch.zeros((), dtype=torch.float64)
    for part, batch in zip(parts, recommender.parts(samples, parts), strict=True):
        face = (recommender.forward, recommender.loss, batch)
        total += float(run.engine.ggn_form(*face, vector)) * len(part)
    ranks().sum(total)
    return float(total) / len(index)


@dataclass(frozen=True)
class TakenAgain:
    """Gradients of the plan's training samples at other parameters; see `Exact`. The model holds
    these afterwards."""

    plan: Plan

    def sums(self, theta: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Σ w_i g_i `[k, d]` for weights `[k, b]`."""
        parts = self._reduced(theta, index, weights, Sums)
        return torch.stack(parts).sum(0).to(theta)

    def squares(self, theta: Tensor, index: Tensor, vectors: Tensor) -> Tensor:
        """Mean T_i (g_iᵀ v)² `[k]` for v `[k, d]`."""
        dots = torch.cat(self._reduced(theta, index, vectors, Dots)).to(theta)
        chosen = self.plan.run.split.train.take(index.numpy())
        return self.plan.run.recommender.terms(chosen).to(theta) @ dots**2 / len(index)

    def _reduced(
        self, theta: Tensor, index: Tensor, given: Tensor, kind: type[Sums | Dots]
    ) -> list[Tensor]:
        engine, forward, loss = self.plan.face
        samples, recommender = self.plan.run.split.train, self.plan.run.recommender
        found = []
        with torch.inference_mode(mode=False):  # which nothing could go back through
            engine.load(theta.clone())
            own = given.to(engine.device, engine.dtype, copy=True)
            for part in torch.arange(len(index)).split(self.plan.config.batch):
                reducer = kind(own[:, part] if kind is Sums else own)
                batch = recommender.batch(samples.take(index[part].numpy()))
                engine.reduce(forward, loss, batch, [reducer])
                found.append(reducer.result())
        return found


def unrolled_run(run: Run, named: str | None = None) -> tuple[Store, Unrolled]:
    """The run's training, to be repeated, and the store that it is in: its own or the one `named`.

    Raises:
        UsageError: There is none.
        DataError: The store's steps do not lead to the run's adapter.
        StoreError: The store is damaged, or of another run.
    """
    reason = why_not_unrolled(run, named)
    store = None if reason else named_store(run, named)
    if store is None:
        raise cannot_unroll(reason)
    samples = run.split.train
    unrolled = Unrolled.of(
        store,
        run.engine.shapes,
        order=torch.from_numpy(samples.ids),
        theta=run.theta,
        terms=run.recommender.terms(samples),
    )
    return store, unrolled


def named_store(run: Run, named: str | None) -> Store | None:
    """The run's own store, or the one `named`."""
    return run.store(Path(named)) if named else run.store()
