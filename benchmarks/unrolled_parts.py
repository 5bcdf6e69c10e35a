"""What the unrolled update leaves out of real retraining, one approximation after the other.

    python benchmarks/unrolled_parts.py [--out out/unrolled] [--seeds 0]

The brief training of benchmarks/unrolled.py, repeated without the samples chosen there. Every
step's gradient is the answer of that step's batch to where the other adapter is by then: computed
by the model there, which is retraining; linear in the layers' weights W, with their exact Hessian
or Gauss-Newton matrix (GGN) at the trained path, of the samples kept or of all times the mean
weight; the GGN as the two views of LoRA's matrices see it; and Fisher products of recorded whole
rows in its place, of eight batches and, as `Unrolled` does, of the one. Optimiser, rates and
removed rows are the same in all. Writes benchmarks/results/unrolled_parts.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from fudlr.gradients.store import Store
from fudlr.gradients.store.shards import decode
from fudlr.influence.unroll import StoredTraining
from fudlr.influence.unroll.adam import OptimiserStep, State
from fudlr.influence.unroll.response import Response, group_layers
from fudlr.run import Run, load_run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from trainings import SETTINGS, train
from unrolled import Case

WINDOW = 8

Answer = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""The gradient `[d]` at θ + δ of a step's batch with weights w, for the step, θ, δ and w."""


class Parts:
    """A training recorded with whole rows, and its model."""

    def __init__(self, run: Run, store: Store) -> None:
        self.run, self.store = run, store
        self.training = StoredTraining(store, torch.from_numpy(run.split.train.ids))
        self.layers = group_layers(run.engine.shapes)
        modules = dict(run.recommender.model.named_modules())
        self.linears = [
            next(m for name, m in modules.items() if name.endswith(a.split(".lora_A")[0]))
            for a in list(run.engine.shapes)[::2]
        ]
        self.weights = [linear.base_layer.weight for linear in self.linears]
        self.scales = [next(iter(linear.scaling.values())) for linear in self.linears]

    def repeat(self, mask: Tensor, answer: Answer) -> Tensor:
        """θ of the training without the samples of `mask` `[n]`."""
        recipe, rates = self.store.manifest.recipe, self.store.rates.tolist()
        assert recipe is not None
        near = away = State.at(self.run.start)
        for t in range(self.training.count):
            step = OptimiserStep(recipe, t + 1, rates[t], self.run.start)
            kept = 1 - mask.float()[self.training.step(t).ids]
            gradient = answer(t, near.theta, away.theta - near.theta, kept)
            away = step.move(away, gradient)
            near = step.move(near, self.training.mean(t))
        return away.theta

    def answers(self) -> dict[str, Answer]:
        return {
            "the model itself": self.of_model,
            "Hessian in W, all": self.in_weights("hessian", kept=False),
            "GGN in W, kept": self.in_weights("ggn", kept=True),
            "GGN in W, all": self.in_weights("ggn", kept=False),
            "GGN in two views, all": self.in_views,
            f"rows of {WINDOW} batches": lambda t, at, d, w: self.of_rows(t, at, d, w, WINDOW),
            "rows of the batch": lambda t, at, d, w: self.of_rows(t, at, d, w, 1),
        }

    def of_model(self, t: int, at: Tensor, d: Tensor, w: Tensor) -> Tensor:
        parameters = list(self.run.engine.parameters())
        loss = self.loss(t, at + d, w)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    def of_rows(self, t: int, at: Tensor, d: Tensor, w: Tensor, window: int) -> Tensor:
        response = Response(self.layers, at)
        first = min(max(t - window // 2, 0), self.training.count - window)
        seen, curved = self.project(t, response.seen(d[None])[0]), torch.zeros_like(d)
        for near in range(first, first + window):
            rows = self.rows(near)
            curved += self.lift(near, rows.T @ (rows @ seen) / len(rows) / window)
        return self.viewed(t, w, response, d, curved * w.mean())

    def in_views(self, t: int, at: Tensor, d: Tensor, w: Tensor) -> Tensor:
        response, engine = Response(self.layers, at), self.run.engine
        engine.load(at)
        face = (self.run.recommender.forward, self.run.recommender.loss, self.batch(t))
        curved = engine.ggn_vp(*face, response.seen(d[None]))[0]
        return self.viewed(t, w, response, d, curved * w.mean())

    def viewed(self, t: int, w: Tensor, response: Response, d: Tensor, curved: Tensor) -> Tensor:
        rows = self.rows(t)
        total = curved + self.training.mean(t) - self.lift(t, (1 - w) @ rows / len(rows))
        return total + response.views(total, d[None])[0]

    def in_weights(self, kind: str, *, kept: bool) -> Answer:
        """((B + b)ᵀ Ĝ, Ĝ (A + a)ᵀ), Ĝ being the whole gradient of W and its change to first order
        in (B + b)(A + a) − B A."""

        def answer(t: int, at: Tensor, d: Tensor, w: Tensor) -> Tensor:
            here, there = self.matrices(at), self.matrices(at + d)
            pairs = zip(here, there, self.scales, strict=True)
            moves = [s * (b1 @ a1 - b0 @ a0) for (a0, b0), (a1, b1), s in pairs]
            for weight in self.weights:
                weight.requires_grad_(True)
            with sdpa_kernel(SDPBackend.MATH):
                found = torch.autograd.grad(self.loss(t, at, w), self.weights)
                curved = self.product(t, w if kept else w.mean().expand(len(w)), moves, kind)
            for weight in self.weights:
                weight.requires_grad_(False)
            out = []
            for g, change, s, (a, b) in zip(found, curved, self.scales, there, strict=True):
                total = s * (g + change)
                out += [(b.T @ total).flatten(), (total @ a.T).flatten()]
            return torch.cat(out)

        return answer

    def product(self, t: int, w: Tensor, moves: list[Tensor], kind: str) -> tuple[Tensor, ...]:
        recommender, batch, weights = self.run.recommender, self.batch(t), self.weights
        scores = recommender.forward(recommender.model, batch)
        if kind == "hessian":
            loss = (recommender.loss(scores, batch) * w).mean()
            slopes = torch.autograd.grad(loss, weights, create_graph=True)
            return torch.autograd.grad(slopes, weights, moves)
        at = scores.detach().requires_grad_()
        loss = (recommender.loss(at, batch) * w).mean()
        (slope,) = torch.autograd.grad(loss, at, create_graph=True)
        cotangent = torch.zeros_like(scores, requires_grad=True)
        pulled = torch.autograd.grad(scores, weights, cotangent, create_graph=True)
        (moved,) = torch.autograd.grad(pulled, cotangent, moves, retain_graph=True)
        (curved,) = torch.autograd.grad(slope, at, moved)
        return torch.autograd.grad(scores, weights, curved)

    def batch(self, t: int) -> Any:
        ids = self.training.step(t).ids
        return self.run.recommender.collate(self.run.split.train.take(ids.numpy()))

    def loss(self, t: int, theta: Tensor, w: Tensor) -> Tensor:
        self.run.engine.load(theta)
        recommender, batch = self.run.recommender, self.batch(t)
        losses = recommender.loss(recommender.forward(recommender.model, batch), batch)
        return (losses * w).mean()

    def matrices(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        own = list(self.run.engine.unflatten(theta).values())
        return list(zip(own[::2], own[1::2], strict=True))

    def rows(self, t: int) -> Tensor:
        step = self.training.step(t)
        return decode(step.rows, step.scales)

    def project(self, t: int, vector: Tensor) -> Tensor:
        projection = self.training.projection(self.training.step(t).segment)
        return vector if projection is None else projection.project(vector[None])[0]

    def lift(self, t: int, sketch: Tensor) -> Tensor:
        projection = self.training.projection(self.training.step(t).segment)
        return sketch if projection is None else projection.lift(sketch[None])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/unrolled"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for seed in given.seeds:
        folder = given.out / f"brief-{seed}"
        run = load_run(folder / "run")  # as `unrolled.py` left it
        if not (folder / "whole" / "store").is_dir():
            train(run, "engine", SETTINGS["whole rows"], folder / "whole")
        case = Case(run, folder / "defaults" / "store", folder)
        parts = Parts(run, Store.open(folder / "whole" / "store"))
        for name, answer in parts.answers().items():
            ways = found.setdefault(name, {})
            ways[str(seed)] = {
                metric: case.judge(metric, parts.repeat(mask, answer))
                for metric, mask in case.masks.items()
            }
            print(seed, name, ways[str(seed)], flush=True)
    seeds = " ".join(map(str, given.seeds))
    command = f"python benchmarks/unrolled_parts.py --seeds {seeds}"
    write_result(RESULTS / "unrolled_parts.json", command, ways=found)


if __name__ == "__main__":
    main()
