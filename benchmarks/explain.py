"""Explanations of single recommendations, beside really retraining without the named samples.

On a short training of the demo's model, for users drawn at random and the first item of each one's
list: the 20 samples that raised its log-probability most, and 20 random ones, are left out of a
retraining each. Reported are the changes of the log-probability that were predicted and made.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from common import RESULTS, bar, write_result
from fudlr import RunConfig, explain, load_run, train_run
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.query.answers import Answers
from fudlr.run import Run
from fudlr.verify import removal, retrain
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from trainings import TRAININGS

NAMED = 20


def log_probability(run: Run, answers: Answers, theta: Tensor) -> float:
    run.engine.load(theta)
    scores = run.recommender.evaluate(answers.prompts)[0].double()
    scores = scores.masked_fill(torch.from_numpy(answers.prompts.seen()), -torch.inf)
    return float(scores.log_softmax(1)[0, answers.prompts.target[0]])


def pair(run: Run, user: str, folder: Path, random: np.random.Generator) -> dict[str, Any]:
    """Predicted and made changes of one user's first item, by named and by random samples."""
    answers = explain(run, user)
    influence = answers.influence[:, 0].double()
    chosen = {"named": influence.argsort()[:NAMED]}
    chosen["random"] = torch.from_numpy(random.permutation(len(influence))[:NAMED])
    found: dict[str, Any] = {"user": user, "score": float(answers.values[0])}
    before = log_probability(run, answers, run.theta)
    assert abs(before - found["score"]) < 1e-3
    for name, index in chosen.items():
        mask = torch.zeros(len(influence))
        mask[index] = 1
        (done,) = retrain(run, [removal(name, mask)], folder)
        made = log_probability(run, answers, done.theta) - before
        found[name] = {"predicted": float(influence[index].sum()), "made": made}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/explain"))
    parser.add_argument("--pairs", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(1)
    fetch_ml100k()
    if not (given.out / "run").is_dir():
        options = {"train.through": "engine", **TRAININGS["brief"]}
        train_run(merge(RunConfig(), options), given.out / "run")
    run, random = load_run(given.out / "run"), np.random.default_rng(0)
    users = random.permutation(run.test.samples.user)[: given.pairs]
    pairs = []
    for user in users:
        name = str(run.interactions.users["user_id"][int(user)])
        pairs.append(pair(run, name, given.out / "retrainings", random))
        print(pairs[-1], flush=True)
    made = {kind: [each[kind]["made"] for each in pairs] for kind in ("named", "random")}
    told = {kind: [each[kind]["predicted"] for each in pairs] for kind in made}
    both = (told["named"] + told["random"], made["named"] + made["random"])
    times = mean(made["named"]) / -mean(map(abs, made["random"]))
    correlation = {
        "named": pearsonr(told["named"], made["named"]).statistic,
        "named and random": pearsonr(*both).statistic,
        "named and random, Spearman": spearmanr(*both).statistic,
    }
    write_result(
        RESULTS / "explain.json",
        f"python benchmarks/explain.py --pairs {given.pairs}",
        samples=len(run.split.train),
        named=NAMED,
        mean_made={kind: mean(values) for kind, values in made.items()},
        mean_predicted={kind: mean(values) for kind, values in told.items()},
        mean_size_of_random=mean(map(abs, made["random"])),
        correlation=correlation,
        bars=[
            bar("times the mean size of a random removal's change", times, 5),
            bar("correlation of predicted and made", correlation["named and random"], 0.8),
        ],
        pairs=pairs,
    )


if __name__ == "__main__":
    main()
