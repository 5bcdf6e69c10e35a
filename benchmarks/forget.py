"""Forgetting named users, beside really retraining without them: loss, membership, predictions.

For each seed the demo's training, and 50 users drawn at random: what the update and retraining
change of the forgotten samples' loss, their membership AUC, and predictions; CPU seconds of a
request and of the training. For the first seed more users too, until retraining is due, and ten
requests one after the other beside one for all.
"""

from __future__ import annotations

import argparse
import time
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
from fudlr.run import Run
from fudlr.verify import removal, retrain

USERS = 50
MORE = (100, 200, 400)
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


def beside(run: Run, users: list[str], folder: Path) -> dict[str, Any]:
    """One request beside retraining; retrainings are kept in `folder`."""
    mask = find(run, users=users).mask.float()
    start = time.process_time()
    found = {}
    for name, options in {"update": {}, "closed form": {"update": "closed_form"}}.items():
        found[name] = forget(run, users=users, force=True, **options)
    spent = time.process_time() - start
    (done,) = retrain(run, [removal("forget", mask)], folder)
    audit = Audit.of(run, mask, run.config.debias.batch)
    thetas = {"trained": run.theta, "retrained": done.theta}
    thetas |= {name: each.theta for name, each in found.items()}
    states = {name: figures(run, audit, theta) for name, theta in thetas.items()}
    distances = audit.distances(thetas)
    run.engine.load(run.theta)
    before, truth = states["trained"], states["retrained"]
    stages = found["update"].summary["cpu_seconds"]
    needed = found["update"].summary["cost"]["stages"]
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
        "request_cpu_s": sum(stages[name] for name in needed),
        "both_requests_cpu_s": spent,
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
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
