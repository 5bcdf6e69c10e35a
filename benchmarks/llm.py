"""The real run: SmolLM2-135M over MovieLens-100k with BIGRec's prompts, debiased and retrained.

    python benchmarks/llm.py [--small] [--out FOLDER] [STAGE ...]      (or: make llm)

1,024 samples, LoRA r8 on q and v, 3 epochs; grounded scores of 200 users over the whole catalogue;
requests for ARP and for the gap between genders, each retrained without its samples. A stage that
is done is not done again, and training and retraining go on from their last checkpoint: run it
again after a stop. `--small` takes the model's first layer, a few samples and users, and one
request: a check that every stage works, and no result. Writes benchmarks/results/llm.json.
"""

import argparse
import json
import os
import time
from pathlib import Path

import smollm
from common import RESULTS, bar, write_result
from fudlr import debias, load_run, train_run, verify_result
from fudlr import write_result as write_answer
from fudlr.common.files import write_json
from fudlr.config import RunConfig, merge
from fudlr.data import fetch_ml100k
from safetensors.torch import load_file

OPTIONS = {
    "data.source": "ml-100k", "data.window": 10, "data.train_samples": 1024,
    "data.prompt_users": 200, "recommender.kind": "grounded", "recommender.template": "bigrec",
    "recommender.max_tokens": 400, "lora.rank": 8, "lora.targets": ["q_proj", "v_proj"],
    "train.epochs": 3, "train.batch": 16, "train.learning_rate": 1e-3, "train.checkpoint": 4,
    "train.through": "engine", "record.epochs": "all",
    "debias.update": "unrolled", "debias.batch": 8,
    "debias.force": True,
}  # fmt: skip
"""λ and the mask's rule are the defaults. What a diagnostic would refuse is written down and not
obeyed (debias.force): what the run gives is to be seen, whatever it is."""
SMALL = {
    "data.train_samples": 16, "data.prompt_users": 4, "train.epochs": 1, "train.batch": 8,
    "train.checkpoint": 1, "debias.lambda_acc": 0.0,
}  # fmt: skip
OBJECTIVES = {"arp": "arp", "gender": "hellinger"}
WITHIN = 0.3
"""Of retraining's change of ARP and of its surrogate: the bar for the update's."""


def train(out: Path, small: bool) -> None:
    if (out / "run" / "config.yaml").is_file():
        return
    options = {**OPTIONS, **(SMALL if small else {}), "model.base": str(base(small))}
    train_run(merge(RunConfig(), options), out / "run", required=True)


def base(small: bool) -> Path:
    return smollm.convert(1 if small else None)


def request(out: Path, name: str) -> None:
    if not (out / name / "summary.json").is_file():
        run = load_run(out / "run")
        write_answer(out / name, debias(run, objective=OBJECTIVES[name], curve=(), heldout=False))


def verify(out: Path, name: str) -> None:
    if "retrained" not in summary(out, name):
        verify_result(out / name, load_run(out / "run"))


def summary(out: Path, name: str) -> dict:
    return json.loads((out / name / "summary.json").read_text(encoding="utf-8"))


def report(out: Path, small: bool, names: list[str]) -> None:
    """Figures of each request, the bars, and how far and which way the adapters moved."""
    run = load_run(out / "run")
    results = {name: outcome(out, name) for name in names}
    path = out / "llm_small.json" if small else RESULTS / "llm.json"
    write_result(
        path,
        "python benchmarks/llm.py" + " --small" * small,
        model=smollm.NAME + ", first layer" * small,
        samples=len(run.split.train),
        users=len(run.split.test),
        items=run.interactions.n_items,
        parameters=run.engine.d,
        losses=run.losses,
        results=results,
        bars=[compared(results["arp"], metric) for metric in ("arp", "arp_soft")],
        shifts={name: shifts(run, out, name) for name in names},
        stages=json.loads((out / "stages.json").read_text(encoding="utf-8")),
    )


def outcome(out: Path, name: str) -> dict:
    """What the result file keeps of one request."""
    kept = ("objective", "before", "after", "retrained", "predicted", "intervals", "agreement",
            "null", "samples", "warnings")  # fmt: skip
    found = summary(out, name)
    return {key: found[key] for key in kept}


def compared(result: dict, metric: str) -> dict:
    """The update's change over retraining's; no claim where retraining's interval covers 0."""
    low, high = result["intervals"]["retrained_change"][metric]
    agreement = result["agreement"].get(metric)
    claim = (low > 0 or high < 0) and agreement is not None
    found = bar(f"{metric} within {WITHIN:.0%} of retraining's change",
                abs(agreement - 1) if claim else float("nan"), WITHIN, least=False)  # fmt: skip
    met = found["met"] if claim else None
    return {**found, "agreement": agreement, "retrained_change": [low, high], "claim": claim,
            "measured": found["measured"] if claim else None, "met": met}  # fmt: skip


def shifts(run, out: Path, name: str) -> dict[str, float]:
    """How far training, the update and retraining move the adapter, and how alike the last two."""
    start, trained, ours, retrained = (
        run.engine.flatten(load_file(folder / "adapter_model.safetensors")).double()
        for folder in (out / "run" / "start", out / "run" / "adapter", out / name / "adapter",
                       out / name / "retrained")
    )  # fmt: skip
    update, truth = ours - trained, retrained - trained
    return {
        "training": float((trained - start).norm()),
        "update": float(update.norm()),
        "retraining": float(truth.norm()),
        "cosine": float(update @ truth / (update.norm() * truth.norm())),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="all in their order by default")
    parser.add_argument("--small", action="store_true", help="one layer, a few samples: a check")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    small, out = given.small, given.out or Path("out/llm-small" if given.small else "out/llm")
    names = ["arp"] if small else list(OBJECTIVES)
    stages = {"fetch": lambda: (fetch_ml100k(), base(small)), "train": lambda: train(out, small)}
    for name in names:
        stages[f"debias-{name}"] = lambda name=name: request(out, name)
        stages[f"verify-{name}"] = lambda name=name: verify(out, name)
    stages["report"] = lambda: report(out, small, names)
    unknown = set(given.stages) - set(stages)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stages)}")
    for name in given.stages or stages:
        print(f"stage {name}", flush=True)
        timed(out / "stages.json", name, stages[name])


def timed(path: Path, name: str, stage) -> None:
    """Do a stage; the wall and CPU seconds of the longest call, which did the work, are kept."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    stage()
    taken = {"wall": time.perf_counter() - wall, "cpu": sum(os.times()[:4]) - cpu}
    times = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    times[name] = max(taken, times.get(name, taken), key=lambda each: each["cpu"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, times)


if __name__ == "__main__":
    main()
