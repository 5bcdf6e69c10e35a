"""The unrolled update from sketches: faithful to real retraining at which size and cost.

    python benchmarks/unrolled.py [--out out/unrolled] [--trainings brief demo] [--seeds 0]

Trainings of the demo's model: *brief*, 1,024 samples in 192 steps, as language models are tuned;
*demo*, the demo's own of 300 steps; *large*, all samples of every user; *synthetic*, 1,600 samples
of made-up data. Each is trained through peft and through the engine, recorded with the defaults and
not, in turns. For ARP and for Hellinger, with λ_acc = 1 and a budget of 10%, the samples that the
unrolled influence chooses are taken out by the unrolled update, by the closed form from the last
epoch, and by a real retraining.
Changes are of the steered surrogate on test prompts. With --compare, other settings of the
recording answer for the same masks, whole rows among them, and the rows of some epochs in place of
all. With --removals, that many random removals of 10% are really retrained, and nothing else is
done: how changes on the validation prompts rank beside those that influences predict. With --costs,
CPU seconds alone are measured, of trainings or of requests to what they stored, or both. Runs and
retrainings are kept in --out. Writes benchmarks/results/unrolled.json or unrolled_costs.json, in
which what was measured before is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, describe, write_result
from fudlr import RunConfig
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.gradients.store import Store
from fudlr.influence.mask import threshold_mask
from fudlr.influence.unroll import Unrolled
from fudlr.metrics import Objective
from fudlr.pipeline.plan import Plan
from fudlr.pipeline.request import solve
from fudlr.pipeline.unrolling import Retraining
from fudlr.run import Run, load_run, train_run
from fudlr.verify import random_removals, removal, retrain
from torch import Tensor
from trainings import (
    LISTS,
    OBJECTIVES,
    SETTINGS,
    SHARE,
    TRAININGS,
    cpu,
    figures,
    plan_for,
    removed,
    spearman,
    train,
    unrolled,
)

PARTS = ("trainings", "requests")


def requests(run: Run, store: Path) -> dict[str, float]:
    """CPU seconds of a first request, of another objective then, and of the floor under both."""

    def answer(objective: str, solved: Any = None) -> Any:
        plan = plan_for(run, store, objective, update="unrolled")
        again = None if solved is None else plan.gradients(plan.valid, known=solved.gradients)
        found = solve(plan) if solved is None else solved.by(again)
        found.answer(found.scored(objective=plan.objective))
        return found

    answer("arp")  # as a process that has trained, or asked before, is warm
    first, solved = cpu(lambda: answer("arp"))
    further, _ = cpu(lambda: answer("hellinger", solved))
    plan, known = solved.plan, solved.gradients
    gradients, _ = cpu(lambda: plan.gradients(plan.valid))
    other = plan_for(run, store, "hellinger", update="unrolled")
    again, _ = cpu(lambda: other.gradients(other.valid, known=known))
    found = {"first": first, "further": further, "metric gradients": gradients}
    return {**found, "further gradients": again, "floor": floor(plan)}


def floor(plan: Plan) -> float:
    """CPU seconds of one forward and one backward pass through the engine over the users."""
    run = plan.run

    def forward(model: Any, batch: Any) -> Tensor:
        return run.recommender.item_scores(run.recommender.forward(model, batch), batch)

    def work() -> None:
        samples = plan.valid.samples
        for batch in run.recommender.batches(samples, plan.config.batch, scoring=True):
            way = run.engine.deferred_vjp(forward, batch)
            way.vjp((torch.ones_like(way.outputs[0])[None],))

    return cpu(work)[0]


class Case:
    """One training and one seed: two masks, each really retrained without."""

    def __init__(self, run: Run, store: Path, folder: Path) -> None:
        self.run = run
        self.plan = plan_for(run, store, "arp", also=("hellinger",), update="unrolled")
        self.gradients = self.plan.gradients(self.plan.valid)
        self.first = self.scores(unrolled(run, Store.open(store)))
        self.masks = {name: threshold_mask(s, SHARE).remove for name, s in self.first.items()}
        jobs = [removal(f"without {name}", mask) for name, mask in self.masks.items()]
        found = retrain(run, jobs, folder / "retrainings", description="retrain")
        self.retrained = {name: each.theta for name, each in zip(self.masks, found, strict=True)}
        self.before = figures(self.plan, run.theta)
        self.after = {name: figures(self.plan, theta) for name, theta in self.retrained.items()}

    def real(self, name: str, key: str) -> float:
        """What retraining without the mask `name` changes the figure `key` by."""
        return self.after[name][key] - self.before[key]

    def scores(self, training: Unrolled) -> dict[str, Tensor]:
        names = list(self.gradients)
        stacked = torch.stack([self.gradients[name].gradient for name in names])
        influence = dict(zip(names, training.influence(stacked).T, strict=True))
        values = {name: self.gradients[name].value for name in names}
        out = {}
        for name in OBJECTIVES:
            turned = Objective.parse(name).coefficients(torch.tensor([values[name]]))[0]
            fair, accuracy = float(turned) * influence[name], influence["val_loss"]
            out[name] = fair / fair.std() + accuracy / accuracy.std()
        return out

    def judge(self, name: str, theta: Tensor) -> dict[str, float]:
        """An update without the mask `name`, held against retraining."""
        found = figures(self.plan, theta)
        soft, lists = (
            (found[key] - self.before[key]) / self.real(name, key)
            for key in (OBJECTIVES[name], LISTS[name])
        )
        real = self.retrained[name] - self.run.theta
        return {
            "change_of_retraining": soft,
            "change_of_retraining_in_lists": lists,
            "cosine": float(torch.cosine_similarity(theta - self.run.theta, real, dim=0)),
        }

    def all(self, training: Unrolled) -> dict[str, dict[str, Any]]:
        scores, out = self.scores(training), {}
        for name, mask in self.masks.items():
            retraining = Retraining(self.run, training)
            (shift,), stiffness, _ = retraining.without(mask[None])
            theta, gradient = self.run.theta + shift, self.gradients["val_loss"].gradient
            rise = figures(self.plan, theta)["val_loss"] - self.before["val_loss"]
            plain, first = training.update(mask), self.run.theta + training.tangent(mask[None])[0]
            out[name] = {
                **self.judge(name, theta),
                "stiffness": stiffness,
                "bend": retraining.bend(shift, stiffness, gradient, rise),
                "without_it": self.judge(name, plain),
                "first_order": self.judge(name, first),
                "scores_spearman": spearman(scores[name], self.first[name]),
            }
        return out


def size(run: Run, store: Store) -> dict[str, float]:
    whole = 4 * run.engine.d * len(run.split.train) * run.config.train.epochs
    means = 4 * run.engine.d * store.steps
    return {
        "bytes_of_float32": store.bytes / whole,
        "of_them_means": means / whole,
        "numbers_of_d": store.dim / run.engine.d,
        "projections": len(store.manifest.segments),
        "energy": store.audit.get("energy", 1.0),
    }


def training_costs(run: Run, folder: Path, repeats: int) -> dict[str, Any]:
    """CPU seconds of trainings in turns, recorded and not; a store stays."""
    ways = {"peft": ("peft", None), "peft recorded": ("peft", {}), "engine": ("engine", None),
            "engine recorded": ("engine", {})}  # fmt: skip
    each: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (through, settings) in ways.items():
            place = folder / "defaults" if name == "engine recorded" else folder
            each[name].append(train(run, through, settings, place))
            print(name, each[name], file=sys.stderr, flush=True)
    seconds = {name: statistics.median(found) for name, found in each.items()}
    return {
        "training_cpu_s": seconds,
        "each_training_cpu_s": each,
        "engine_recorded_of_peft": seconds["engine recorded"] / seconds["peft"],
        "peft_recorded_of_peft": seconds["peft recorded"] / seconds["peft"],
        "training_machine": describe(),
    }


def request_costs(run: Run, folder: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """CPU seconds of requests to the store that `training_costs` left, beside its trainings'."""
    cost = requests(run, folder / "defaults" / "store")
    return {
        "request_cpu_s": cost,
        "first_of_training": cost["first"] / seconds["peft"],
        "further_of_training": cost["further"] / seconds["peft"],
        "floor_of_training": cost["floor"] / seconds["peft"],
        "metric_gradients_of_floor": cost["metric gradients"] / cost["floor"],
        "further_gradients_of_floor": cost["further gradients"] / cost["floor"],
        "machine": describe(),
    }


def answers(run: Run, folder: Path, compare: bool) -> dict[str, Any]:
    """What updates change, beside retraining."""
    place = folder / "defaults" / "store"
    if not place.is_dir():
        train(run, "engine", {}, place.parent)
    store = Store.open(place)
    case = Case(run, place, folder)
    closed = solve(plan_for(run, place, "arp", rows="store")).evidence.remove
    found = {
        "samples": len(run.split.train),
        "parameters": run.engine.d,
        "steps": store.steps,
        "store": size(run, store),
        "retrained_change": {
            name: case.real(name, key) / case.before[key] for name, key in OBJECTIVES.items()
        },
        "unrolled": case.all(unrolled(run, store)),
        "closed form": {
            n: case.judge(n, closed(mask[None])[0].theta) for n, mask in case.masks.items()
        },
    }
    print(json.dumps(found, indent=1), file=sys.stderr, flush=True)
    if compare:
        found["compared"] = compared(run, folder, case, store)
    return found


def compared(run: Run, folder: Path, case: Case, store: Store) -> dict[str, Any]:
    """Other settings of the recording, and the rows of some epochs, for the same masks."""
    found: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        spent = train(run, "engine", settings, folder / "other")
        other = Store.open(folder / "other" / "store")
        sizes = {"recorded_cpu_s": spent, **size(run, other)}
        found[name] = {**sizes, "unrolled": case.all(unrolled(run, other))}
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    shutil.rmtree(folder / "other")
    last = int(store.epochs[-1])
    for name, keep in {
        "every second epoch": list(range(last, 0, -2)),
        "last third of the epochs": list(range(last - max(1, last // 3) + 1, last + 1)),
    }.items():
        found[name] = {"epochs": sorted(keep), "unrolled": case.all(unrolled(run, store, keep))}
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    return found


def of_removals(run: Run, folder: Path, count: int) -> dict[str, Any]:
    """The linear datamodeling score: Spearman of changes by random removals with predicted ones."""
    place, whole = folder / "lds", folder / "lds whole"
    train(run, "engine", {}, place)
    train(run, "engine", SETTINGS["whole rows"], whole)
    plan = plan_for(run, place / "store", "arp", also=("hellinger",), update="unrolled")
    gradients = plan.gradients(plan.valid)
    stacked = torch.stack([gradients[name].gradient for name in OBJECTIVES])
    closed = solve(plan_for(run, place / "store", "arp", also=("hellinger",), rows="store"))
    influence = {
        name: unrolled(run, Store.open(at / "store")).influence(stacked)
        for name, at in {"sketches": place, "whole rows": whole}.items()
    }
    influence["closed form"] = torch.stack([closed.influence.of(name) for name in OBJECTIVES], 1)
    shutil.rmtree(whole)
    masks = random_removals(len(run.split.train), count, SHARE, run.config.seed)
    named = {f"random {number}": mask for number, mask in enumerate(masks)}
    actual = removed(run, plan, named, folder)
    predicted = {way: torch.stack(masks).to(each) @ each for way, each in influence.items()}
    return {
        "removals": count,
        "spearman": {
            way: {name: spearman(each[:, k], actual[:, k]) for k, name in enumerate(OBJECTIVES)}
            for way, each in predicted.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/unrolled"))
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=["brief", "demo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--answers", action="store_true", help="what is done without options")
    parser.add_argument("--compare", action="store_true", help="other settings of the recording")
    parser.add_argument("--removals", type=int, default=0, help="random removals, in place of all")
    parser.add_argument("--costs", nargs="*", choices=PARTS, help="CPU seconds alone: of which")
    parser.add_argument("--repeats", type=int, default=3, help="of trainings whose time is taken")
    given = parser.parse_args()
    given.costs = PARTS if given.costs == [] else given.costs
    torch.set_num_threads(1)
    fetch_ml100k()
    path = RESULTS / ("unrolled_costs.json" if given.costs else "unrolled.json")
    for name in given.trainings:
        for seed in given.seeds:
            folder = given.out / f"{name}-{seed}"
            if not (folder / "run").is_dir():
                options = {"train.through": "engine", "record.epochs": "none"}
                options |= {**TRAININGS[name], "seed": seed}
                train_run(merge(RunConfig(), options), folder / "run")
            run = load_run(folder / "run")
            earlier = json.loads(path.read_text()) if path.is_file() else {}
            trainings = earlier.get("trainings", {})
            known = trainings.get(name, {}).get(str(seed), {})
            if given.removals:
                made = {"lds": of_removals(run, folder, given.removals)}
            elif given.costs:
                made = {}
                if "trainings" in given.costs:
                    made = training_costs(run, folder, given.repeats)
                if "requests" in given.costs:
                    seconds = {**known, **made}["training_cpu_s"]
                    made |= request_costs(run, folder, seconds)
            else:
                made = answers(run, folder, given.compare)
                made["machine"] = describe()
            trainings.setdefault(name, {})[str(seed)] = {**known, **made}
            seeds = " ".join(sorted({s for each in trainings.values() for s in each}))
            command = "python benchmarks/unrolled.py --trainings " + " ".join(trainings)
            only = f" --costs --repeats {given.repeats}" if given.costs else " --answers"
            write_result(path, f"{command} --seeds {seeds}{only}", share=SHARE, trainings=trainings)


if __name__ == "__main__":
    main()
