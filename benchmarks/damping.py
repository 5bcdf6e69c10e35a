"""The damping rule beside fixed factors of it, held against real retraining.

    python benchmarks/damping.py [--seeds 0 1 2] [--out out/lds] [--processes 2] [--small]

Two trainings a seed: *stopped early*, the demo's own, and *converged*, with ten times its λ and
twice its epochs, so that the slope all but vanishes. For each, random and targeted removals of 10%
are really retrained (3 and 2 of the first, 1 and 1 of the second: about ten of the demo's
trainings), and for the rule's damping times 1/10, 1/3, 1, 3 and 10 the predicted changes Σ m_i s_i
and the closed form's are compared with the actual ones, on the validation prompts, and the closed
form's parameters with the retrained ones. Runs and retrainings are those of benchmarks/lds.py where
it ran before. Writes benchmarks/results/damping.json; --small checks that all parts work, on a
fraction of the samples, and writes into --out.
"""

import argparse
from pathlib import Path

import torch
from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.demo import SMALL
from fudlr.influence.curvature import EmpiricalFisher
from fudlr.influence.scores import influence
from fudlr.influence.solvers import make_solver
from fudlr.influence.update import removal_update
from fudlr.pipeline.evidence import gather
from fudlr.pipeline.job import prepare, with_options
from fudlr.pipeline.removal import MAX_STEPS
from fudlr.pipeline.request import choose_damping, stationarity
from fudlr.run import Run, load_run, train_run
from fudlr.verify import random_removals, removal, retrain, targeted_removals
from fudlr.verify.changes import surrogates
from machine import describe

RESULTS = Path(__file__).parent / "results"
SHARE = 0.1
FACTORS = (0.1, 1 / 3, 1.0, 3.0, 10.0)
METRICS = ("arp", "hellinger", "val_loss")
CONVERGED = {"train.l2": 0.1, "train.epochs": 20}
TRAININGS: dict[str, tuple[str, dict, int, int]] = {
    "stopped early": ("seed", {}, 3, 2),
    "converged": ("converged", CONVERGED, 1, 1),
}
"""Name to folder, options, random and targeted removals."""


def errors(found: list[dict[str, float]], actual: list[dict[str, float]]) -> dict[str, dict]:
    """By metric: the ratio of all changes, and the distance as a share of the actual changes."""
    result = {}
    for metric in METRICS:
        p = torch.tensor([each[metric] for each in found], dtype=torch.float64)
        a = torch.tensor([each[metric] for each in actual], dtype=torch.float64)
        result[metric] = {
            "found": p.tolist(),
            "actual": a.tolist(),
            "ratio": float((p @ a) / (a @ a)),
            "error": float((p - a).norm() / a.norm()),
        }
    return result


def shifts(found: list[torch.Tensor], actual: list[torch.Tensor]) -> dict[str, float]:
    """The same two of the parameters' shifts θ − θ* [d], all removals together."""
    p, a = torch.stack(found).double(), torch.stack(actual).double()
    ratio = float((p * a).sum() / a.square().sum())
    return {"ratio": ratio, "error": float((p - a).norm() / a.norm())}


def of_training(run: Run, kept: Path, counts: tuple[int, int], processes: int) -> dict:
    """Predicted, closed-form and actual changes under each damping."""
    options = {"objective": "arp", "also": METRICS[1:], "rows": "memory"}
    job = prepare(run, with_options(run.config.debias, options), StageClock())
    gathered = gather(job)
    gradients = {name: each.gradient for name, each in job.gradients(job.valid).items()}
    slope, l2, n = gathered.slope(), run.config.train.l2, len(run.split.train)
    rule = choose_damping(l2, slope, run.theta, run.start)
    rows = gathered.space.rows

    def solver(damping: float):
        return make_solver(EmpiricalFisher(rows), damping, "cg", max_steps=MAX_STEPS)

    masks = random_removals(n, counts[0], SHARE, run.config.seed)
    scored = influence(rows, gradients, solver(rule)).of("arp")
    masks += targeted_removals(scored, counts[1], SHARE, run.config.seed)
    jobs = [removal(f"removal {i + 1}", mask) for i, mask in enumerate(masks)]
    done = retrain(run, jobs, kept, processes, "retrain")
    before = surrogates(run, job.valid, METRICS, run.theta)

    def changes(theta: torch.Tensor) -> dict[str, float]:
        after = surrogates(run, job.valid, METRICS, theta)
        return {name: after[name] - before[name] for name in METRICS}

    actual = [changes(each.theta) for each in done]
    table = {}
    for factor in FACTORS:
        solve = solver(factor * rule)
        run.engine.load(run.theta)
        values = influence(rows, gradients, solve)
        predicted = [
            {name: float(mask.double() @ values.of(name).double()) for name in METRICS}
            for mask in masks
        ]
        updated = [removal_update(run.theta, rows, mask, solve).theta for mask in masks]
        closed = [changes(theta) for theta in updated]
        table[f"{factor:.3g}"] = {
            "damping": factor * rule,
            "predicted": errors(predicted, actual),
            "closed form": errors(closed, actual),
            "parameters": shifts(
                [theta - run.theta for theta in updated], [each.theta - run.theta for each in done]
            ),
        }
    return {
        "l2": l2,
        "stationarity": stationarity(l2, slope, run.theta, run.start),
        "rule": rule,
        "random": counts[0],
        "targeted": counts[1],
        "factors": table,
    }


def main() -> None:
    """Train and retrain what is missing, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("out/lds"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    record: dict = {
        "command": "python benchmarks/damping.py --seeds " + " ".join(map(str, arguments.seeds)),
        "machine": describe(),
        "share": SHARE,
        "trainings": {name: {} for name in TRAININGS},
    }
    for seed in arguments.seeds:
        for name, (prefix, options, random, targeted) in TRAININGS.items():
            folder = arguments.out / f"{prefix}-{seed}"
            if not (folder / "run").is_dir():
                small = SMALL if arguments.small else {}
                train_run(merge(RunConfig(), {"seed": seed, **small, **options}), folder / "run")
            found = of_training(
                load_run(folder / "run"),
                folder / "retrainings",
                (random, targeted),
                arguments.processes,
            )
            record["trainings"][name][str(seed)] = found
            for factor, each in found["factors"].items():
                arp = {k: f"{each[k]['arp']['ratio']:.2f}" for k in ("predicted", "closed form")}
                print(seed, name, f"{found['stationarity']:.3f}", factor, arp, flush=True)
            write_json((arguments.out if arguments.small else RESULTS) / "damping.json", record)


if __name__ == "__main__":
    main()
