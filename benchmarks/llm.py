"""The real run: SmolLM2-135M over MovieLens-100k with BIGRec's prompts, debiased, verified.

    python benchmarks/llm.py [--small] [--way replay] [--out FOLDER] [--list] [STAGE ...]
    (or: make llm)

1,024 samples, LoRA r8 on q and v, 3 epochs; grounded scores of 200 users over the whole catalogue;
requests for ARP and for the gap between genders, each retrained without its samples; scores of
titles for 50 users and 100 candidates. A stage that is done is not done again, and training and
retraining go on from their last checkpoint: run it again after a stop. `--small` takes the model's
first two layers, a few samples and users: a check that every stage works, and no result.
`--way` is how the samples are taken out: `store` by one damping for all parameters, from a store;
`adam` damped by the optimiser's pace; `replay` by going the training again in the rows that it kept
(docs/method.md). Only the first needs a store, and makes one.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import smollm
import torch
from fudlr import debias, load_run, train_run, verify_result, write_result
from fudlr.checkpoint import ENDING
from fudlr.config import RunConfig, dump_config, load_config, merge
from fudlr.data import fetch_ml100k
from fudlr.evaluation import make_prompts
from fudlr.files import atomic_folder, write_json
from fudlr.metrics import evaluate
from fudlr.metrics.pairwise import pairwise
from fudlr.progress import duration, track
from fudlr.record import record_run
from fudlr.run import Run, make_split
from fudlr.verify import removal, retrain
from kept import keep_evaluations
from machine import describe
from safetensors.torch import load_file

OPTIONS = {
    "data.source": "ml-100k", "data.window": 10, "data.train_samples": 1024,
    "data.prompt_users": 200, "recommender.kind": "grounded", "recommender.template": "bigrec",
    "recommender.max_tokens": 400, "lora.rank": 8, "lora.targets": ["q_proj", "v_proj"],
    "train.epochs": 3, "train.batch": 16, "train.learning_rate": 1e-3, "train.checkpoint": 4,
    "train.through": "engine",
    "record.ride": False, "record.batch": 8, "record.fit_samples": 64, "record.audit": 16,
    "debias.batch": 8, "debias.curve": [], "debias.heldout": False, "debias.force": True,
}  # fmt: skip
"""λ, its damping and the mask's rule are the defaults. A signature of failure is written down and
not obeyed (debias.force): what the run gives is to be seen, whatever it is."""
SMALL = {
    "data.train_samples": 16, "data.prompt_users": 4, "train.epochs": 1, "train.batch": 8,
    "train.checkpoint": 1, "debias.lambda_acc": 0.0, "record.fit_samples": 8, "record.audit": 4,
}  # fmt: skip
TITLES = {"recommender.kind": "titles", "data.candidates": 100, "data.prompt_users": 50}
SMALL_TITLES = {**TITLES, "data.candidates": 10, "data.prompt_users": 2}
OBJECTIVES = {"arp": "arp", "gender": "hellinger"}
WAYS: dict[str, tuple[dict, dict]] = {
    "store": ({}, {}),
    "adam": ({}, {"metric": "adam"}),
    "replay": ({"record.trajectory": "float32"}, {"update": "replay"}),
}
"""What each way adds to the options of the training, and to those of a request."""
WITHIN = 0.3
"""Of retraining's change of ARP: the bar for the closed form's."""


@dataclass
class Work:
    """Where a run is made, whether it is the small one, and how samples are taken out."""

    out: Path
    small: bool
    way: str = "store"

    @property
    def objectives(self) -> dict[str, str]:
        """Name and objective of each request; the small run makes one."""
        return {"arp": OBJECTIVES["arp"]} if self.small else OBJECTIVES

    @property
    def run(self) -> Path:
        return self.out / "run"

    def base(self) -> Path:
        return smollm.convert(2 if self.small else None)

    @cached_property
    def loaded(self) -> Run:
        """The run, loaded once: its items' embeddings, which no adapter changes, are kept too.

        What is measured of an adapter is on disk, for later stages and after a kill.
        """
        return keep_evaluations(load_run(self.run), self.out / "evaluations")


@dataclass(frozen=True)
class Stage:
    """One stage: what it does, what is there when it is done, and its CPU minutes as estimated."""

    do: Callable[[Work], None]
    done: Callable[[Work], bool]
    minutes: float


def fetch(work: Work) -> None:
    fetch_ml100k()
    if not smollm.converted():
        smollm.fetch()


def train(work: Work) -> None:
    options = {**OPTIONS, **(SMALL if work.small else {}), **WAYS[work.way][0]}
    options["model.base"] = str(work.base())
    train_run(merge(RunConfig(), options), work.run)


def record(work: Work) -> None:
    record_run(work.loaded)


def request(name: str) -> Callable[[Work], None]:
    def do(work: Work) -> None:
        found = debias(work.loaded, objective=OBJECTIVES[name], **WAYS[work.way][1])
        write_result(work.out / name, found)

    return do


def retrained(name: str) -> Callable[[Work], None]:
    """The retraining alone, kept where `verify_result` looks for it."""

    def do(work: Work) -> None:
        run, table = work.loaded, load_mask(work.out / name)
        retrain(run, [removal(f"retrain without the samples of {name}", table)],
                work.out / name / "retrainings")  # fmt: skip

    return do


def load_mask(folder: Path) -> torch.Tensor:
    return torch.from_numpy(pl.read_parquet(folder / "mask.parquet")["mask"].to_numpy().copy())


def verify(name: str) -> Callable[[Work], None]:
    def do(work: Work) -> None:
        verify_result(work.out / name, work.loaded)

    return do


def verified_requests(work: Work) -> list[str]:
    return [name for name in work.objectives if verified(name)(work)]


def adapters(work: Work) -> dict[str, Path]:
    found = {"trained": work.run / "adapter"}
    for name in verified_requests(work):
        found |= {f"{name} debiased": work.out / name / "adapter",
                  f"{name} retrained": work.out / name / "retrained"}  # fmt: skip
    return found


def titles(work: Work) -> None:
    """Every adapter by the titles' likelihoods: the training is the same, only scores differ."""
    folder = as_titles(work)
    run = load_run(folder)
    test = make_prompts(run.split, run.split.test, run.config.data)
    for name, adapter in track(adapters(work).items(), description="titles of adapters"):
        path = titles_file(work, name)
        if path.is_file():
            continue
        run.engine.load(run.engine.flatten(load_file(adapter / "adapter_model.safetensors")))
        scores, losses = run.recommender.evaluate(test.samples, 1)
        figures = evaluate(scores, test.side) | pairwise(scores, test.side)
        write_json(path, {**figures, "test_loss": float(losses.mean())})


def titles_file(work: Work, adapter: str) -> Path:
    return work.out / "titles" / f"{adapter.replace(' ', '-')}.json"


def as_titles(work: Work) -> Path:
    """The run again, as a recommender of titles: links to its files, and a configuration."""
    folder = work.out / "run-titles"
    if not (folder / "config.yaml").is_file():
        config = merge(load_config(work.run / "config.yaml"),
                       SMALL_TITLES if work.small else TITLES)  # fmt: skip
        with atomic_folder(folder) as temporary:
            for name in ("base", "start", "adapter", "train.json"):
                (temporary / name).symlink_to((work.run / name).resolve())
            written = json.loads((work.run / "recommender.json").read_text(encoding="utf-8"))
            write_json(temporary / "recommender.json", {**written, "kind": "titles"})
            dump_config(temporary / "config.yaml", config)
    return folder


def report(work: Work) -> None:
    """What is there: requests not verified yet, and titles not scored, are named as such."""
    done = verified_requests(work)
    if "arp" not in done:
        raise SystemExit(
            f"{work.out} has no result yet: the request for ARP, which the bar is about, is not "
            "verified. Run the stages before: python benchmarks/llm.py, without names of stages"
        )
    run, times = work.loaded, json.loads((work.out / "stages.json").read_text(encoding="utf-8"))
    results = {name: outcome(work.out / name) for name in done}
    name = "llm_small.json" if work.small else "llm.json"
    found = {
        "command": f"python benchmarks/llm.py{' --small' if work.small else ''}"
        + (f" --way {work.way}" if work.way != "store" else ""),
        "model": smollm.NAME + (", first two layers" if work.small else ""),
        "samples": len(run.split.train),
        "users": len(run.split.test),
        "items": run.interactions.n_items,
        "parameters": run.engine.d,
        "losses": run.losses,
        "results": results,
        "not_run": [name for name in work.objectives if name not in done],
        "bar": f"closed form within {WITHIN:.0%} of retraining's change of ARP at a 10% budget",
        "bars": [bar(results["arp"], metric) for metric in ("arp", "arp_soft")],
        "shifts": {name: shifts(work, name) for name in done},
        "shares": {name: shares(times, name) for name in done},
        "titles": titles_found(work),
        "stages": times,
        "machine": describe(),
    }  # fmt: skip
    write_json(work.out / name, found)
    print(f"{work.out / name} is written; benchmarks/results/ keeps the real run's")


def shares(times: dict, name: str) -> dict[str, float]:
    """CPU seconds of a request's stages, evaluations in them, and their share of a retraining's."""
    named = ("record", f"debias-{name}", f"retrain-{name}")
    cpu = {stage: times.get(stage, {"cpu": 0.0})["cpu"] for stage in named}
    record, request, retraining = cpu.values()
    return {"record": record, "request": request, "retraining": retraining,
            "share": (record + request) / retraining}  # fmt: skip


def shifts(work: Work, name: str) -> dict[str, float]:
    """How far training, closed form and retraining move the adapter, and how alike the last two.

    `along` is retraining's part of the closed form's way: their product over its square.
    """
    flatten = work.loaded.engine.flatten
    start, trained, debiased, retrained = (
        flatten(load_file(folder / "adapter_model.safetensors")).double()
        for folder in (work.run / "start", work.run / "adapter", work.out / name / "adapter",
                       work.out / name / "retrained")
    )  # fmt: skip
    ours, truth = debiased - trained, retrained - trained
    return {
        "training": float((trained - start).norm()),
        "closed_form": float(ours.norm()),
        "retraining": float(truth.norm()),
        "cosine": float(ours @ truth / (ours.norm() * truth.norm())),
        "along": float(ours @ truth / (ours @ ours)),
    }


def titles_found(work: Work) -> dict | None:
    """Figures of the adapters whose titles were scored, or None."""
    files = {name: titles_file(work, name) for name in adapters(work)}
    listed = {name: json.loads(path.read_text(encoding="utf-8"))
              for name, path in files.items() if path.is_file()}  # fmt: skip
    if not listed:
        return None
    config = load_config(work.out / "run-titles" / "config.yaml").data
    users = len(make_split(work.loaded.interactions, config).test)
    return {"users": users, "candidates": config.candidates, "figures": listed}


def outcome(folder: Path) -> dict:
    """What the result file keeps of one request."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    kept = ("objective", "before", "after", "retrained", "predicted", "intervals", "agreement",
            "null", "directions", "samples", "solver", "signatures", "warnings",
            "verification")  # fmt: skip
    return {name: summary[name] for name in kept}


def bar(arp: dict, metric: str = "arp") -> dict:
    """Closed form against retraining for ARP; no claim where retraining's interval covers none.

    The lists' ARP is what was asked about; its surrogate is what the request has a gradient of.
    """
    low, high = arp["intervals"]["retrained_change"][metric]
    agreement = arp["agreement"].get(metric)
    claim = (low > 0 or high < 0) and agreement is not None
    return {
        "metric": metric,
        "agreement": agreement,
        "retrained_change": [low, high],
        "claim": claim,
        "met": abs(agreement - 1) <= WITHIN if claim else None,
    }


def exists(*parts: str) -> Callable[[Work], bool]:
    return lambda work: (work.out / Path(*parts)).exists()


def recorded(work: Work) -> bool:
    """Whether there is a store, or none is needed."""
    return work.way != "store" or exists("run", "store", "audit.json")(work)


def verified(name: str) -> Callable[[Work], bool]:
    def done(work: Work) -> bool:
        path = work.out / name / "summary.json"
        return path.is_file() and "retrained" in json.loads(path.read_text(encoding="utf-8"))

    return done


def kept_retrainings(name: str) -> Callable[[Work], bool]:
    def done(work: Work) -> bool:
        found = work.out.glob(f"{name}/retrainings/*.safetensors")
        return any(not path.name.endswith(ENDING) and path.name[0] != "." for path in found)

    return done


def never(work: Work) -> bool:
    return False


def stages(work: Work) -> dict[str, Stage]:
    """All stages in their order. Minutes are of CPU, as measured for ARP (the page
    docs/real_model.md has them); a second core halves them."""
    names = work.objectives

    def each(kind: str, do: Callable, done: Callable, minutes: float) -> dict[str, Stage]:
        return {f"{kind}-{name}": Stage(do(name), done(name), minutes) for name in names}

    adapters_in_all = 1 + 2 * len(names)
    return {
        "fetch": Stage(fetch, never, 1),
        "convert": Stage(lambda work: print(work.base()), never, 2),
        "train": Stage(train, exists("run", "config.yaml"), 80),
        "record": Stage(record, recorded, 30),
        **each("debias", request, lambda name: exists(name, "summary.json"), 36),
        **each("retrain", retrained, kept_retrainings, 71),
        **each("verify", verify, verified, 7),
        "titles": Stage(
            titles,
            lambda work: len(list(work.out.glob("titles/*.json"))) == adapters_in_all,
            7 * adapters_in_all,
        ),
        "report": Stage(report, never, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="all in their order by default")
    parser.add_argument("--small", action="store_true", help="two layers, a few samples: a check")
    parser.add_argument("--way", choices=WAYS, default="store")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="say what is done, and do nothing")
    given = parser.parse_args(arguments)
    out = given.out or Path("out/llm-small" if given.small else "out/llm")
    work = Work(out, given.small, given.way)
    known = stages(work)
    unknown = set(given.stages) - set(known)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    wanted = {name: known[name] for name in given.stages or known}
    for at, (name, stage) in enumerate(wanted.items(), start=1):
        rest = list(wanted.values())[at - 1 :]
        left = sum(each.minutes for each in rest if not each.done(work))
        if stage.done(work):
            print(f"{name}: done")
        elif given.list:
            print(f"{name}: about {stage.minutes:g} CPU minutes with the whole model")
        else:
            estimate = "" if work.small else f"; about {duration(left * 60)} of CPU to the end"
            print(f"{name}: {at} of {len(wanted)}{estimate}", flush=True)
            timed(work, name, stage)


def timed(work: Work, name: str, stage: Stage) -> None:
    """Do a stage, and write down its wall and CPU seconds; of the attempt that ended it alone."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    stage.do(work)
    path = work.out / "stages.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    times[name] = {"wall": time.perf_counter() - wall, "cpu": sum(os.times()[:4]) - cpu}
    write_json(path, times)
    print(f"{name} took {duration(times[name]['wall'])}", flush=True)


if __name__ == "__main__":
    main()
