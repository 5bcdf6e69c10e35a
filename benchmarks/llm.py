"""The real run: SmolLM2-135M over MovieLens-100k with BIGRec's prompts, debiased, verified.

    python benchmarks/llm.py [--small] [--way WAY] [--out FOLDER] [--list] [STAGE ...]
    (or: make llm)

1,024 samples, LoRA r8 on q and v, 3 epochs; grounded scores of 200 users over the whole catalogue;
requests for ARP and for the gap between genders, each retrained without its samples; scores of
titles for 50 users and 100 candidates. A stage that is done is not done again, and training and
retraining go on from their last checkpoint: run it again after a stop. `--small` takes the model's
first two layers, a few samples and users: a check that every stage works, and no result.
`--way` is how the samples are taken out (docs/method.md): `replay`, the default, by going the
training again in the rows that it kept; `store` by one damping for all parameters, from a store,
which it makes; `adam` damped by the optimiser's pace. A folder is for one of them.

Two stages are done where they are named. `again-arp` takes the request's samples out by the replay
as it is now, whatever version made the request, and holds that to the same retraining. `seeds-arp`
trains with and without these samples in another order: how much of a change is the order's.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import smollm
from fudlr import debias, load_run, lora, train_run, verify_result, write_result
from fudlr.common.files import atomic_folder, read_json, write_json
from fudlr.common.progress import duration, track
from fudlr.config import RunConfig, dump_config, load_config, merge
from fudlr.data import fetch_ml100k
from fudlr.evaluation import make_prompts
from fudlr.metrics import bootstrap, evaluate
from fudlr.metrics.pairwise import pairwise
from fudlr.pipeline.replayed import replay_of, replayed
from fudlr.record import record_run
from fudlr.run import read_data
from fudlr.run.binding import FILE as BINDING
from fudlr.run.binding import Record, write_binding
from fudlr.train.checkpoint import ENDING
from fudlr.verify import Checks, default_processes, removal, retrain
from kept import keep_evaluations
from llm_report import report
from llm_work import (
    OBJECTIVES,
    OPTIONS,
    SEEDS,
    SMALL,
    SMALL_TITLES,
    TITLES,
    USUAL,
    WAYS,
    Work,
    adapters,
    all_titles,
    changes_file,
    exists,
    load_mask,
    made_again,
    seeded,
    titles_file,
    verified,
)
from safetensors.torch import load_file


@dataclass(frozen=True)
class Stage:
    """One stage: what it does, what is there when it is done, and its CPU minutes as estimated."""

    do: Callable[[Work], None]
    done: Callable[[Work], bool]
    minutes: float
    usual: bool = True
    """Whether it is done without being named."""


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


def verify(name: str) -> Callable[[Work], None]:
    def do(work: Work) -> None:
        verify_result(work.out / name, work.loaded)

    return do


def seeds(name: str) -> Callable[[Work], None]:
    """Trained with and without the request's samples, in the order of other seeds."""

    def do(work: Work) -> None:
        processes = 1 if work.small else default_processes()
        verify_result(work.out / name, work.loaded, Checks(seeds=SEEDS, processes=processes))

    return do


def again(name: str) -> Callable[[Work], None]:
    """The request's samples taken out by going the training again; figures of the test prompts."""

    def do(work: Work) -> None:
        run = work.loaded
        update = replayed(run, replay_of(run))(load_mask(work.out / name))
        run.engine.load(update.theta)
        test = make_prompts(run.split, run.split.test, run.config.data)
        scores, losses = run.recommender.evaluate(test.samples, run.config.debias.batch)
        figures = {**evaluate(scores, test.side), "test_loss": float(losses.mean())}
        with atomic_folder(work.out / name / "again", "result") as folder:
            lora.save(run.recommender.model, folder / "adapter")
            write_json(folder / "figures.json", figures)

    return do


def titles(work: Work) -> None:
    """Every adapter by the titles' likelihoods: the training is the same, only scores differ."""
    run = keep_evaluations(load_run(as_titles(work)), work.out / "evaluations")
    test = make_prompts(run.split, run.split.test, run.config.data)
    found = {}
    for name, adapter in track(adapters(work).items(), description="titles of adapters"):
        run.engine.load(run.engine.flatten(load_file(adapter / "adapter_model.safetensors")))
        found[name], losses = run.recommender.evaluate(test.samples, 1)
        figures = evaluate(found[name], test.side) | pairwise(found[name], test.side)
        write_json(titles_file(work, name), {**figures, "test_loss": float(losses.mean())})
    drawn = bootstrap(found, test.side)
    changes = {name: drawn[f"{name} - trained"] for name in found if name != "trained"}
    write_json(changes_file(work), {
        name: {metric: [each.low, each.high] for metric, each in change.items()}
        for name, change in changes.items()
    })  # fmt: skip


def as_titles(work: Work) -> Path:
    """The run again, as a recommender of titles: links to its files, and a configuration."""
    folder = work.out / "run-titles"
    if not (folder / "config.yaml").is_file():
        config = merge(load_config(work.run / "config.yaml"),
                       SMALL_TITLES if work.small else TITLES)  # fmt: skip
        with atomic_folder(folder, "result") as temporary:
            for name in ("base", "start", "adapter", "train.json"):
                (temporary / name).symlink_to((work.run / name).resolve())
            written = json.loads((work.run / "recommender.json").read_text(encoding="utf-8"))
            write_json(temporary / "recommender.json", {**written, "kind": "titles"})
            dump_config(temporary / "config.yaml", config)
            model = read_json(work.run / BINDING, Record).model
            write_binding(temporary, read_data(config.data), model)
    return folder


def recorded(work: Work) -> bool:
    """Whether there is a store, or none is needed."""
    return work.way != "store" or exists("run", "store", "audit.json")(work)


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

    def each(
        kind: str, do: Callable, done: Callable, minutes: float, *, usual: bool = True
    ) -> dict[str, Stage]:
        return {f"{kind}-{name}": Stage(do(name), done(name), minutes, usual) for name in names}

    return {
        "fetch": Stage(fetch, never, 1),
        "convert": Stage(lambda work: print(work.base()), never, 2),
        "train": Stage(train, exists("run", "config.yaml"), 98),
        "record": Stage(record, recorded, 30),
        **each("debias", request, lambda name: exists(name, "summary.json"), 37),
        **each("retrain", retrained, kept_retrainings, 67),
        **each("verify", verify, verified, 6),
        **each("again", again, made_again, 6, usual=False),
        **each("seeds", seeds, seeded, 67 * 2 * len(SEEDS), usual=False),
        "titles": Stage(titles, all_titles, 7 * (1 + 2 * len(names))),
        "report": Stage(report, never, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="all in their order by default")
    parser.add_argument("--small", action="store_true", help="two layers, a few samples: a check")
    parser.add_argument("--way", choices=WAYS, default=USUAL)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="say what is done, and do nothing")
    given = parser.parse_args(arguments)
    out = given.out or Path("out/llm-small" if given.small else "out/llm")
    work = Work(out, given.small, given.way)
    known = stages(work)
    unknown = set(given.stages) - set(known)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    usual = [name for name, stage in known.items() if stage.usual]
    wanted = {name: known[name] for name in given.stages or usual}
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
