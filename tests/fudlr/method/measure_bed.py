"""The bed's table in docs/method.md: every curvature against real retraining.

Run from the repository's root: python tests/fudlr/method/measure_bed.py
"""

import torch
from bed import L2, Bed, N, bed
from fudlr.curvature import GGN, EmpiricalFisher, Hessian, Identity
from fudlr.influence import influence
from fudlr.mask import threshold_mask
from fudlr.solvers import make_solver
from fudlr.store import MemoryRows
from fudlr.update import removal_update


class Blocks:
    """Empirical Fisher without the entries between LoRA matrices."""

    def __init__(self, truth: Bed) -> None:
        fisher = truth.matrix.T @ truth.matrix / N
        sizes = [a * b for a, b in truth.engine.shapes.values()]
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.matrix = fisher * (owner[:, None] == owner)

    def product(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ self.matrix


def main() -> None:
    truth = bed()
    rows = MemoryRows(truth.matrix)
    face = (truth.engine, truth.recommender.forward, truth.recommender.loss)
    batches = [truth.recommender.collate(truth.train)]
    curvatures = {
        "exact Hessian": Hessian(*face, batches),
        "GGN": GGN(*face, batches),
        "empirical Fisher": EmpiricalFisher(rows),
        "block-diagonal empirical Fisher": Blocks(truth),
        "identity": Identity(),
    }

    def moved(theta: torch.Tensor) -> float:
        return float(truth.metric(theta) - truth.metric(truth.theta))

    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(20, N, dtype=torch.float64)
    for mask in masks:
        mask[torch.randperm(N, generator=generator)[: N // 20]] = 1
    actual = torch.tensor([moved(truth.retrain(mask)) for mask in masks], dtype=torch.float64)
    solves = {
        name: make_solver(curvature, L2, max_steps=200, tolerance=1e-8)
        for name, curvature in curvatures.items()
    }
    gradient = {"arp": truth.metric_gradient}
    exact = influence(rows, gradient, solves["exact Hessian"]).of("arp")
    targeted = [threshold_mask(exact, share).remove for share in (0.01, 0.05, 0.1, 0.2)]
    retrained = [moved(truth.retrain(mask)) for mask in targeted]
    print("| curvature | slope | Spearman | 1% | 5% | 10% | 20% |\n|---|---|---|---|---|---|---|")
    for name, solve in solves.items():
        predicted = masks @ influence(rows, gradient, solve).of("arp")
        slope = float(predicted @ actual / (predicted @ predicted))
        ranks = torch.stack([v.argsort().argsort().double() for v in (predicted, actual)])
        errors = [
            moved(removal_update(truth.theta, rows, mask, solve, force=True).theta) / change - 1
            for mask, change in zip(targeted, retrained, strict=True)
        ]
        cells = [f"{slope:.2f}", f"{float(torch.corrcoef(ranks)[0, 1]):.3f}"]
        print("| " + " | ".join([name, *cells, *(f"{error:+.0%}" for error in errors)]) + " |")


if __name__ == "__main__":
    main()
