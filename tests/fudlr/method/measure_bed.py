"""The bed's tables in docs/method.md: curvatures and update rules against real retraining.

Run from the repository's root: python tests/fudlr/method/measure_bed.py [SEED ...]
Writes benchmarks/results/bed.json.
"""

import sys
from pathlib import Path

import torch
from bed import L2, Bed, N, bed
from fudlr.common.batches import Batches
from fudlr.common.files import write_json
from fudlr.gradients.store import MemoryRows
from fudlr.influence.curvature import GGN, BlockFisher, EmpiricalFisher, Hessian, Identity
from fudlr.influence.curvature.blocks import block_slices
from fudlr.influence.mask import threshold_mask
from fudlr.influence.scores import influence
from fudlr.influence.solvers import make_solver
from fudlr.influence.update import KeptLoss, newton_update, removal_update, series_update

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))
from machine import describe  # noqa: E402

SHARES = (0.01, 0.05, 0.1, 0.2)
OPTIONS = {"max_steps": 300, "tolerance": 1e-10}


def curvatures(truth: Bed, rows: MemoryRows) -> dict:
    """By name, from weights or None."""
    face = (truth.engine, truth.recommender.forward, truth.recommender.loss)
    batches = [truth.recommender.collate(truth.train)]
    return {
        "hessian": lambda w: Hessian(*face, batches, w),
        "ggn": lambda w: GGN(*face, batches, w),
        "empirical_fisher": lambda w: EmpiricalFisher(rows, w),
        "block_fisher (matrix)": lambda w: BlockFisher(
            rows, block_slices(truth.engine.shapes, "matrix"), w
        ),
        "identity": lambda w: Identity(),
    }


def rules(truth: Bed, rows: MemoryRows, make, mask: torch.Tensor) -> dict:
    """The parameters that each update rule ends at."""
    face = (truth.engine, truth.recommender.forward, truth.recommender.loss)
    batches = Batches([truth.recommender.collate(truth.train)])
    where = {"theta": truth.theta, "start": truth.start, "l2": L2}
    kept = KeptLoss(*face, batches, rows=rows, mask=mask, **where)

    def solve(weights=None):
        return make_solver(make(weights), L2, **OPTIONS)

    first = removal_update(truth.theta, rows, mask, solve())
    found = {
        "one_step": first,
        "kept_curvature": removal_update(truth.theta, rows, mask, solve(1 - mask)),
        "series, order 2": series_update(first, kept, solve(), 2),
        "series, order 3": series_update(first, kept, solve(), 3),
    }
    start = found["series, order 3"] if make(None).name == "hessian" else first
    for steps in (1, 2):
        found[f"newton, {steps}"] = newton_update(start, kept, lambda _: solve(1 - mask), steps)
    return {name: update.theta for name, update in found.items()}


def measured(seed: int) -> dict:
    """One bed: influence on random removals, and every rule's error on targeted ones."""
    truth = bed(seed)
    rows = MemoryRows(truth.matrix)

    def moved(theta: torch.Tensor) -> float:
        return float(truth.metric(theta) - truth.metric(truth.theta))

    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(20, N, dtype=torch.float64)
    for mask in masks:
        mask[torch.randperm(N, generator=generator)[: N // 20]] = 1
    actual = torch.tensor([moved(truth.retrain(mask)) for mask in masks], dtype=torch.float64)
    made = curvatures(truth, rows)
    gradient = {"arp": truth.metric_gradient}
    exact = influence(rows, gradient, make_solver(made["hessian"](None), L2, **OPTIONS)).of("arp")
    targeted = [threshold_mask(exact, share).remove.double() for share in SHARES]
    retrained = [moved(truth.retrain(mask)) for mask in targeted]
    found: dict = {}
    for name, make in made.items():
        solve = make_solver(make(None), L2, **OPTIONS)
        predicted = masks @ influence(rows, gradient, solve).of("arp")
        ranks = torch.stack([v.argsort().argsort().double() for v in (predicted, actual)])
        errors: dict = {}
        for mask, change in zip(targeted, retrained, strict=True):
            if name in ("hessian", "ggn", "empirical_fisher"):
                ends = rules(truth, rows, make, mask)
            else:
                ends = {"one_step": removal_update(truth.theta, rows, mask, solve).theta}
            for rule, theta in ends.items():
                errors.setdefault(rule, []).append(moved(theta) / change - 1)
        found[name] = {
            "slope": float(predicted @ actual / (predicted @ predicted)),
            "spearman": float(torch.corrcoef(ranks)[0, 1]),
            "errors": errors,
        }
        print(seed, name, {k: [f"{e:+.1%}" for e in v] for k, v in errors.items()}, flush=True)
    return found


def main() -> None:
    seeds = [int(seed) for seed in sys.argv[1:]] or [0]
    record = {
        "command": " ".join(["python tests/fudlr/method/measure_bed.py", *map(str, seeds)]),
        "machine": describe(),
        "shares": SHARES,
        "seeds": {},
    }
    for seed in seeds:
        record["seeds"][str(seed)] = measured(seed)
        write_json(ROOT / "benchmarks" / "results" / "bed.json", record)


if __name__ == "__main__":
    main()
