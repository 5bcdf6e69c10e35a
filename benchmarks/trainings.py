"""Trainings of the demo's model, recorded and unrolled; for benchmarks of that update."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fudlr.common.progress import StageClock
from fudlr.evaluation import measure
from fudlr.gradients.recording import recording
from fudlr.gradients.store import Store
from fudlr.gradients.store.shards import Step, decode
from fudlr.influence.unroll import StoredTraining, Unrolled
from fudlr.pipeline.plan import Plan, prepare, with_options
from fudlr.run import Run
from fudlr.train.adapter import train_adapter
from fudlr.verify import removal, retrain
from torch import Tensor

TRAININGS: dict[str, dict[str, Any]] = {
    "brief": {"data.train_samples": 1024, "train.epochs": 3, "train.batch": 16,
              "train.learning_rate": 1e-3},
    "demo": {},
    "large": {"data.max_train_per_user": 1000, "train.epochs": 2},
    "synthetic": {"data.source": "synthetic"},
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "whole rows": {"energy": 1.0, "dtype": "float32"},
    "energy .9, bfloat16": {"energy": 0.9, "dtype": "bfloat16"},
    "energy .9, int8": {"energy": 0.9, "dtype": "int8"},
    "energy .8, bfloat16": {"energy": 0.8, "dtype": "bfloat16"},
    "energy .8, int8": {"energy": 0.8, "dtype": "int8"},
    "energy .7, int8": {"energy": 0.7, "dtype": "int8"},
    "energy .6, int8": {"energy": 0.6, "dtype": "int8"},
}
OBJECTIVES = {"arp": "arp_soft", "hellinger": "hellinger"}
LISTS = {"arp": "arp", "hellinger": "hellinger@10"}
LOSSES = ("test_loss", "val_loss")
SHARE = 0.1


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def train(run: Run, through: str, settings: dict[str, Any] | None, folder: Path) -> float:
    """CPU seconds of the training, recorded into `folder`/store where there are settings."""
    update = {"epochs": "none"} if settings is None else {"epochs": "all", **settings}
    record = run.config.record.model_copy(update=update)
    options = run.config.train.model_copy(update={"through": through})
    config = run.config.model_copy(update={"record": record, "train": options})
    face = (run.recommender, run.engine, run.split.train)
    shutil.rmtree(folder / "store", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    run.engine.load(run.start)
    clock = StageClock(announce=False)

    def work() -> None:
        with recording(*face, config=config, run=folder, clock=clock) as recorder:
            train_adapter(*face, options, run.start, recorder=recorder)

    spent = cpu(work)[0]
    run.engine.load(run.theta)
    return spent


def plan_for(run: Run, store: Path, objective: str, **options: Any) -> Plan:
    asked = {"objective": objective, "lambda_acc": 1.0, "store": str(store), **options}
    return prepare(run, with_options(run.config.debias, asked), StageClock(announce=False))


def figures(plan: Plan, theta: Tensor) -> dict[str, float]:
    plan.run.engine.load(theta)
    found = measure(plan.run.recommender, plan.valid, plan.test).metrics
    plan.run.engine.load(plan.run.theta)
    return {name: found[name] for name in (*OBJECTIVES.values(), *LISTS.values(), *LOSSES)}


class SomeEpochs(StoredTraining):
    """A stored training whose rows of all but some epochs stand in from the nearest of those."""

    def __init__(self, store: Store, order: Tensor, keep: list[int]) -> None:
        super().__init__(store, order)
        self._store, self._keep = store, keep
        self._epochs: dict[int, tuple[Tensor, Tensor]] = {}

    def step(self, step: int) -> Step:
        """The step, with rows of the nearest epoch that is kept."""
        found = super().step(step)
        nearest = min(self._keep, key=lambda epoch: abs(epoch - found.epoch))
        if nearest == found.epoch:
            return found
        if nearest not in self._epochs:
            steps = [super(SomeEpochs, self).step(t) for t in range(self.count)
                     if int(self._store.epochs[t]) == nearest]  # fmt: skip
            ids = torch.cat([each.ids for each in steps])
            rows = torch.cat([decode(each.rows, each.scales) for each in steps])
            self._epochs[nearest] = (rows[ids.argsort()], torch.tensor(steps[0].segment))
        rows, segment = self._epochs[nearest]
        values = {name: getattr(found, name) for name in found.__dataclass_fields__}
        chosen = {"rows": rows[found.ids], "scales": None, "segment": int(segment)}
        return Step(**{**values, **chosen})


def removed(run: Run, plan: Plan, masks: dict[str, Tensor], folder: Path) -> Tensor:
    """What real retraining without each of `masks` changes the surrogates of `OBJECTIVES` by on the
    validation prompts, `[removals, 2]`; retrainings are kept in `folder`."""
    jobs = [removal(name, mask) for name, mask in masks.items()]
    done = retrain(run, jobs, folder / "retrainings", description="retrain")

    def values(theta: Tensor) -> list[float]:
        run.engine.load(theta)
        found = measure(run.recommender, plan.valid, plan.valid).metrics
        return [found[key] for key in OBJECTIVES.values()]

    changes = torch.tensor([values(each.theta) for each in done]) - torch.tensor(values(run.theta))
    run.engine.load(run.theta)
    return changes


def unrolled(run: Run, store: Store, keep: list[int] | None = None) -> Unrolled:
    order = torch.from_numpy(run.split.train.ids)
    ends = store.training()
    recipe = store.manifest.recipe
    assert recipe is not None
    return Unrolled(
        StoredTraining(store, order) if keep is None else SomeEpochs(store, order, keep),
        run.engine.shapes,
        recipe=recipe,
        rates=store.rates,
        samples=len(order),
        start=ends["start"],
        theta=run.theta,
        terms=run.recommender.terms(run.split.train),
    )


def spearman(a: Tensor, b: Tensor) -> float:
    return float(
        torch.corrcoef(torch.stack([v.argsort().argsort().double() for v in (a, b)]))[0, 1]
    )
