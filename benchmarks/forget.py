"""Forgetting named users, beside really retraining without them: loss, membership, predictions.

For each seed the demo's training, and 50 users drawn at random: what the update and retraining
change of the forgotten samples' loss, their membership AUC, and predictions; CPU seconds of what an
updated adapter needs, from opening the store on, of the same of a debiasing, in turns, and of the
retraining. For the first seed more users too, until retraining is due, and ten
requests one after the other beside one for all.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, bar, write_result
from fudlr import RunConfig, load_run, train_run
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.debias import Audit, forget
from fudlr.debias.removal import find
from fudlr.evaluation import measure
from fudlr.output.results import write_result as write_folder
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.plan import prepare
from fudlr.pipeline.request import solve
from fudlr.run import Run
from fudlr.verify import removal, retrain
from trainings import cpu

USERS = 50
MORE = (100, 200, 400)
TURNS = 3
STREAK = 10
SHOWN = ("removed_loss", "kept_loss", "test_loss", "membership_auc", "ndcg@10")


def drawn(run: Run, count: int) -> list[str]:
    """Ids of users with training samples, a longer list beginning with the shorter ones."""
    users = np.unique(run.split.train.user)
    chosen = np.random.default_rng(run.config.seed).permutation(users)[:count]
    return [str(run.interactions.users["user_id"][int(at)]) for at in chosen]


def figures(run: Run, audit: Audit, theta: torch.Tensor) -> dict[str, float]:
    run.engine.load(theta)
    found = audit.of_adapter(measure(run.recommender, run.valid, run.test)).metrics
    return {name: found[name] for name in SHOWN}


def requests(run: Run, mask: torch.Tensor) -> dict[str, float]:
    """Median CPU seconds of an update without `mask` and of a debiasing, in turns."""

    def named() -> None:
        plan = prepare(run, run.config.debias, command="forget")
        solvers(plan, gather(plan)).remove(mask[None])

    def chosen() -> None:
        solved = solve(prepare(run, run.config.debias))
        solved.answer(solved.scored())

    spent: dict[str, list[float]] = {"request_cpu_s": [], "debias_cpu_s": []}
    for _ in range(TURNS):
        for name, work in zip(spent, (named, chosen), strict=True):
            spent[name].append(cpu(work)[0])
    return {name: statistics.median(values) for name, values in spent.items()}


def beside(run: Run, users: list[str], folder: Path) -> dict[str, Any]:
    """One request beside retraining; retrainings are kept in `folder`."""
    mask = find(run, users=users).mask.float()
    found = {}
    for name, options in {"update": {}, "closed form": {"update": "closed_form"}}.items():
        found[name] = forget(run, users=users, force=True, **options)
    seconds = requests(run, mask)
    (done,) = retrain(run, [removal("forget", mask)], folder)
    audit = Audit.of(run, mask, run.config.debias.batch)
    thetas = {"trained": run.theta, "retrained": done.theta}
    thetas |= {name: each.theta for name, each in found.items()}
    states = {name: figures(run, audit, theta) for name, theta in thetas.items()}
    distances = audit.distances(thetas)
    run.engine.load(run.theta)
    before, truth = states["trained"], states["retrained"]
    return {
        "users": len(users),
        "share": float(mask.mean()),
        "figures": states,
        "removed_loss_over_retraining": {
            name: (states[name]["removed_loss"] - before["removed_loss"])
            / (truth["removed_loss"] - before["removed_loss"])
            for name in found
        },
        "auc_from_retrained": {
            name: states[name]["membership_auc"] - truth["membership_auc"]
            for name in ("trained", *found)
        },
        "distances": distances,
        **seconds,
        "command_cpu_s": found["update"].summary["cost"]["command_cpu_seconds"],
        "retraining_cpu_s": done.cpu_seconds,
    }


def streak(run: Run, users: list[str], folder: Path) -> dict[str, Any]:
    """Requests one after the other, each after all before it, and one for all at once."""
    after: list[Path] = []
    parts = [users[at::STREAK] for at in range(STREAK)]
    shares = []
    for number, part in enumerate(parts):
        found = forget(run, users=part, after=after, force=True)
        shares.append(float(found.mask.float().mean()))
        after.append(write_folder(folder / f"request-{number}", found))
    whole = forget(run, users=users, force=True)
    return {
        "requests": STREAK,
        "shares": shares,
        "largest_difference_from_one": float((found.theta - whole.theta).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/forget"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    fetch_ml100k()
    seeds: dict[str, Any] = {}
    more, row = [], {}
    for seed in given.seeds:
        folder = given.out / f"run-{seed}"
        if not folder.is_dir():
            train_run(merge(RunConfig(), {"seed": seed}), folder)
        run, kept = load_run(folder), given.out / f"retrainings-{seed}"
        seeds[str(seed)] = beside(run, drawn(run, USERS), kept)
        if seed == given.seeds[0]:
            more = [beside(run, drawn(run, count), kept) for count in MORE]
            row = streak(run, drawn(run, USERS), given.out)
    ratios = [each["removed_loss_over_retraining"]["update"] for each in seeds.values()]
    costs = [each["request_cpu_s"] / each["debias_cpu_s"] for each in seeds.values()]
    aucs = [abs(each["auc_from_retrained"]["update"]) for each in seeds.values()]
    write_result(
        RESULTS / "forget.json",
        "python benchmarks/forget.py --seeds " + " ".join(map(str, given.seeds)),
        seeds=seeds,
        more_users=more,
        streak=row,
        bars=[
            bar("removed loss, off retraining's change", max(abs(r - 1) for r in ratios), 0.15,
                least=False),
            bar("membership AUC, off retraining's", max(aucs), 0.02, least=False),
            bar("CPU time beside a debiasing's", max(costs), 1.0, least=False),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
