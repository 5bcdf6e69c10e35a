"""The real run: SmolLM2-135M recommends MovieLens-100k's items, is debiased and retrained.

    python benchmarks/llm.py [--small] [--seeds 0 1 2] [--out FOLDER] [STAGE ...]    (or: make llm)

Items are tokens that start from their titles. The base model learns them from the users' older
halves, once; then a LoRA adapter is trained for each seed while its gradients are recorded. Two
requests a seed, for ARP and for the gap between genders, are answered and really retrained. A stage
that is done is not done again, and trainings go on from their last checkpoint: run it again after
a stop. `--small` takes the model's first layer, a few samples and users, and one request: a check
that every stage works, and no result. Products of float32 are computed in bfloat16 where the CPU
has it, and accumulated in float32 (torch's `medium`); all else is float32. Writes
benchmarks/results/llm.json, with the seeds that are done.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import mean

import sequential
import smollm
import torch
from common import RESULTS, bar, describe, write_result
from fudlr import debias, load_run, train_run, verify_result
from fudlr import write_result as write_answer
from fudlr.common.files import write_json
from fudlr.compare import compare_run
from fudlr.config import RunConfig, merge
from fudlr.data import fetch_ml100k, load_ml100k, make_split
from fudlr.evaluation import make_prompts, most_popular
from safetensors.torch import load_file

OPTIONS = {
    "data.source": "ml-100k", "data.window": 10, "data.pretrain_share": 0.8,
    "recommender.kind": "item_tokens", "lora.rank": 8, "lora.targets": "all-linear",
    "train.epochs": 3, "train.batch": 64, "train.learning_rate": 3e-4, "train.checkpoint": 20,
    "train.through": "engine", "record.epochs": "all", "debias.force": True,
}  # fmt: skip
"""λ and the mask's rule are the defaults. What a diagnostic would refuse is written down and not
obeyed (debias.force): what the run gives is to be seen, whatever it is."""
PRETRAIN = {"model.pretrain_epochs": 2}
SMALL = {
    "data.train_samples": 16, "data.prompt_users": 4, "data.pretrain_share": 0.02,
    "train.epochs": 1, "train.batch": 8, "train.checkpoint": 1, "debias.lambda_acc": 0.0,
}  # fmt: skip
SMALL_PRETRAIN = {"model.pretrain_epochs": 1}
OBJECTIVES = {"arp": "arp", "gender": "hellinger"}
KEPT = ("objective", "before", "after", "retrained", "predicted", "intervals", "agreement", "null",
        "samples", "warnings", "heldout", "expected", "cost", "cpu_seconds")  # fmt: skip
SHOWN = ("hr@10", "ndcg@10", "arp", "aplt", "gini", "coverage", "hellinger@10")


class Study:
    """The stages of one folder."""

    def __init__(self, out: Path, small: bool, seeds: list[int]) -> None:
        self.out, self.small, self.seeds = out, small, seeds
        self.names = ["arp"] if small else list(OBJECTIVES)

    def run(self, seed: int) -> Path:
        """The folder of a seed's run."""
        return self.out / f"run-{seed}"

    def stages(self) -> dict:
        """What is to be done, in its order."""
        found = {"fetch": lambda: (fetch_ml100k(), self.base()), "base": self.learn}
        for seed in self.seeds:
            found[f"train-{seed}"] = lambda seed=seed: self.train(seed)
            found[f"debias-{seed}"] = lambda seed=seed: self.requests(seed)
            for name in self.names:
                found[f"verify-{name}-{seed}"] = lambda n=name, s=seed: self.verify(n, s)
        if not self.small:
            found["sequential"] = self.sequential
            found["compare"] = self.compare
        return {**found, "report": self.report}

    def base(self) -> Path:
        return smollm.convert(1 if self.small else None)

    def learn(self) -> None:
        """The base model's item tokens, by a run whose adapter is not used."""
        options = {"model.base": str(self.base()), **PRETRAIN, "data.train_samples": 64}
        if self.small:
            options |= SMALL | SMALL_PRETRAIN
        self._train(self.out / "base", {**options, "train.epochs": 1, "record.epochs": "none"})

    def train(self, seed: int) -> None:
        options = {"model.base": str(self.out / "base" / "base"), "seed": seed, "train.seed": seed}
        self._train(self.run(seed), {**(SMALL if self.small else {}), **options})

    def _train(self, folder: Path, options: dict) -> None:
        if not (folder / "config.yaml").is_file():
            train_run(merge(RunConfig(), {**OPTIONS, **options}), folder, required=True)

    def answer(self, name: str, seed: int) -> Path:
        """The folder of a request's result."""
        return self.out / f"{name}-{seed}"

    def requests(self, seed: int) -> None:
        """Each objective's request, one after the other in one process, and by closed form."""
        run = load_run(self.run(seed))
        for name in self.names:
            for way, update in ((name, "auto"), (f"{name}-closed", "closed_form")):
                folder = self.answer(way, seed)
                if not (folder / "summary.json").is_file():
                    options = {"objective": OBJECTIVES[name], "update": update}
                    found = debias(run, curve=(), heldout=way == name, **options)
                    write_answer(folder, found)

    def verify(self, name: str, seed: int) -> None:
        if "retrained" not in self.summary(name, seed):
            verify_result(self.answer(name, seed), load_run(self.run(seed)))

    def summary(self, name: str, seed: int) -> dict:
        return json.loads((self.answer(name, seed) / "summary.json").read_text(encoding="utf-8"))

    def sequential(self) -> None:
        """What most-popular, item-kNN and SASRec reach on the same split."""
        path = self.out / "sequential.json"
        if path.is_file():
            return
        config = merge(RunConfig(), {k: v for k, v in OPTIONS.items() if k.startswith("data.")})
        split = make_split(load_ml100k(), config.data)
        valid, test = (make_prompts(split, each, config.data) for each in (split.valid, split.test))
        found = {"most popular": [most_popular(test.side)],
                 "item-kNN": [sequential.figures(sequential.item_knn(valid, test), test)],
                 "SASRec": [sequential.figures(sequential.sasrec(valid, test, seed), test)
                            for seed in (0, 1, 2)]}  # fmt: skip
        write_json(path, {way: {key: [each[key] for each in rows] for key in SHOWN}
                          for way, rows in found.items()})  # fmt: skip

    def compare(self) -> None:
        """The rivals on the first seed's adapter."""
        path = self.out / "compare.json"
        if not path.is_file():
            run = load_run(self.run(self.seeds[0]))
            write_json(path, compare_run(run, run.config.debias, self.out / "compare"))

    def report(self) -> None:
        """Figures of the seeds that are done, the bars, how far and which way adapters moved."""
        done = [seed for seed in self.seeds if self.done(seed)]
        results = {name: {seed: self.outcome(name, seed) for seed in done} for name in self.names}
        run = load_run(self.run(done[0]))
        beside = {
            name: json.loads((self.out / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("sequential", "compare")
            if (self.out / f"{name}.json").is_file()
        }
        write_result(
            self.out / "llm_small.json" if self.small else RESULTS / "llm.json",
            "python benchmarks/llm.py" + " --small" * self.small,
            model=smollm.NAME + ", first layer" * self.small,
            options={**OPTIONS, **PRETRAIN},
            seeds=done,
            samples=len(run.split.train),
            users=len(run.split.test),
            items=run.interactions.n_items,
            parameters=run.engine.d,
            disk=self.disk(run),
            results=results,
            bars=[] if self.small else bars(results, beside),
            stages=json.loads((self.out / "stages.json").read_text(encoding="utf-8")),
            **beside,
        )

    def done(self, seed: int) -> bool:
        paths = [self.answer(name, seed) / "summary.json" for name in self.names]
        return all(path.is_file() and "retrained" in json.loads(path.read_text()) for path in paths)

    def outcome(self, name: str, seed: int) -> dict:
        """What the result file keeps of one request."""
        found = self.summary(name, seed)
        closed = self.summary(f"{name}-closed", seed)
        return {
            **{key: found[key] for key in KEPT if key in found},
            "closed_form": {key: closed[key] for key in ("after", "predicted", "cost")},
            "shifts": self.shifts(name, seed),
            "training": json.loads((self.run(seed) / "train.json").read_text(encoding="utf-8")),
            "base": json.loads((self.out / "base" / "train.json").read_text(encoding="utf-8")),
        }

    def shifts(self, name: str, seed: int) -> dict[str, float]:
        """How far training, the update and retraining move the adapter, and how alike the last."""
        run, answer = self.run(seed), self.answer(name, seed)
        start, trained, ours, retrained = (
            {key: each.double() for key, each in
             load_file(folder / "adapter_model.safetensors").items()}
            for folder in (run / "start", run / "adapter", answer / "adapter", answer / "retrained")
        )  # fmt: skip
        keys = sorted(trained)

        def products(a, b, c, e) -> float:
            return float(sum(((a[k] - b[k]) * (c[k] - e[k])).sum() for k in keys))

        update, truth = (products(x, trained, x, trained) ** 0.5 for x in (ours, retrained))
        return {
            "training": products(trained, start, trained, start) ** 0.5,
            "update": update,
            "retraining": truth,
            "cosine": products(ours, trained, retrained, trained) / (update * truth),
        }

    def disk(self, run) -> dict[str, float]:
        """Bytes of the store, and of the float32 gradients that it stands for."""
        files = [each for each in (run.folder / "store").rglob("*") if each.is_file()]
        whole = 4 * run.engine.d * len(run.split.train) * run.config.train.epochs
        stored = sum(each.stat().st_size for each in files)
        return {"stored": stored, "gradients": whole, "share": stored / whole}


def change(result: dict, metric: str, state: str) -> float:
    """Relative change from before."""
    return result[state][metric] / result["before"][metric] - 1


def share(result: dict, metric: str) -> float:
    """The update's change over retraining's."""
    before = result["before"][metric]
    return (result["after"][metric] - before) / (result["retrained"][metric] - before)


def bars(results: dict, beside: dict) -> list[dict]:
    """What was asked of the means over seeds, and what was measured."""
    arp, gender = (list(results[name].values()) for name in ("arp", "gender"))

    def of(rows: list[dict], metric: str) -> float:
        return mean(change(row, metric, "after") for row in rows)

    hits = mean(row["before"]["hr@10"] for row in arp)
    found = [
        bar("ARP changes by at most", of(arp, "arp"), -0.07, least=False),
        bar("APLT changes by at least", of(arp, "aplt"), 0.25),
        bar("NDCG@10 loses at most 4%", of(arp, "ndcg@10"), -0.04),
        bar("Hellinger of genders changes by at most", of(gender, "hellinger"), -0.15, least=False),
    ]
    for rows, metric in ((arp, "arp_soft"), (gender, "hellinger")):
        value = mean(share(row, metric) for row in rows)
        found.append(bar(f"{metric}: update's change over retraining's, at least", value, 0.85))
        found.append(bar(f"{metric}: the same, at most", value, 1.15, least=False))
    if "sequential" in beside:
        others = beside["sequential"]
        popular, sasrec = (mean(others[way]["hr@10"]) for way in ("most popular", "SASRec"))
        found.append(bar("HR@10 over most popular's", hits / popular, 2.0))
        found.append(bar("HR@10 over SASRec's", hits / sasrec, 0.9))
    return found


def timed(path: Path, name: str, stage) -> None:
    """Do a stage; wall and CPU seconds, commit and load of the longest call, which did the work."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    stage()
    taken = {"wall": time.perf_counter() - wall, "cpu": sum(os.times()[:4]) - cpu}
    about = describe()
    taken |= {"commit": about["commit"], "load": about["load"][0]}
    times = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    times[name] = max(taken, times.get(name, taken), key=lambda each: each["cpu"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, times)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="all in their order by default")
    parser.add_argument("--small", action="store_true", help="one layer, a few samples: a check")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    out = given.out or Path("out/llm-small" if given.small else "out/llm")
    study = Study(out, given.small, given.seeds[:1] if given.small else given.seeds)
    stages = study.stages()
    unknown = set(given.stages) - set(stages)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stages)}")
    earlier = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for name in given.stages or stages:
            print(f"stage {name}", flush=True)
            timed(out / "stages.json", name, stages[name])
    finally:
        torch.set_float32_matmul_precision(earlier)


if __name__ == "__main__":
    main()
