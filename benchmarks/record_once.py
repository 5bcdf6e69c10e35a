"""Record once, debias at will: what it costs beside training, and what is left of the full effect.

    python benchmarks/record_once.py [--seeds 0 1 2] [--repeats 3] [--out out/record_once]

The demo's model and data, one thread. For each seed: the ten epochs of training, plain, as the
yardstick; one more epoch in turn with and without a recorder; requests from the store of a run
that recorded its last epoch; the same store made by a scoring pass instead; the full method, with
every whole gradient; and real retraining without the samples that the store's request removed.
Costs are CPU seconds, medians of the repeats. A seed that is in --out already is kept. Writes
benchmarks/results/record_once.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import torch
from common import describe
from fudlr import RunConfig
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.debias.steps import request
from fudlr.evaluation import measure
from fudlr.pipeline.plan import Plan, prepare, with_options
from fudlr.record import record_run
from fudlr.run import Run, load_run, train_run
from fudlr.train.adapter import train_adapter
from recording import epoch

RESULT = Path(__file__).parent / "results" / "record_once.json"
REQUESTS = {
    "arp alone": {"objective": "arp", "lambda_acc": 0.0},
    "arp": {"objective": "arp"},
    "hellinger": {"objective": "hellinger"},
}
METRIC = {"arp alone": "arp", "arp": "arp", "hellinger": "hellinger"}
# What the issue asks: shares of the training's CPU seconds, and shares of the full effect.
FIRST = {"arp alone": 0.045, "arp": 0.055, "hellinger": 0.055}
FURTHER = {"arp alone": 0.025, "arp": 0.033, "hellinger": 0.033}
WITHOUT_RECORDER = 0.15
EFFECT = {"arp alone": 0.93, "arp": 0.93, "hellinger": 0.87}
RECORDING = 0.17
# What is aimed at beyond that.
AIMS = {
    "recording": 0.1,
    "first": {"arp alone": 0.04, "arp": 0.05, "hellinger": 0.05},
    "further": {"arp alone": 0.02, "arp": 0.026, "hellinger": 0.026},
    "without_recorder": 0.09,
    "effect": {"arp alone": 0.95, "arp": 0.95, "hellinger": 0.9},
}


def cpu_of(work):
    """(CPU seconds, result) of a call."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def plan_of(run: Run, options: dict, rows: str) -> Plan:
    """A request, checked and with its prompts made; none of it is timed."""
    config = with_options(run.config.debias, {**options, "rows": rows})
    run.engine.load(run.theta)
    return prepare(run, config)


def figures(run: Run, plan: Plan, theta: torch.Tensor) -> dict[str, float]:
    """All metrics of an adapter on the test prompts."""
    run.engine.load(theta)
    return measure(run.recommender, plan.valid, plan.test, plan.config.batch).metrics


def one_request(run: Run, name: str, repeats: int) -> dict:
    """Cost of a request from the store and by the full method, and what each changes."""
    options = REQUESTS[name]
    out: dict = {}
    for rows, times in (("store", repeats), ("memory", 1)):
        seconds = []
        for _ in range(times):
            plan = plan_of(run, options, rows)
            spent, (solved, found, _) = cpu_of(lambda plan=plan: request(plan))
            seconds.append(spent)
        out[rows] = {
            "cpu_seconds": median(seconds),
            "removed": int(found.mask.sum()),
            "damping": solved.evidence.damping,
            "stages": plan.clock.seconds,
            "after": figures(run, plan, found.update.theta),
        }
        if rows == "store":
            mask = found.mask
    out["before"] = figures(run, plan, run.theta)
    training = train_adapter(
        run.recommender,
        run.engine,
        run.split.train,
        run.config.train,
        run.start,
        weights=1 - mask.float(),
        description="retrain without the removed samples",
    )
    out["retrained"] = figures(run, plan, training.theta)
    return out


def of_seed(seed: int, repeats: int, out: Path) -> dict:
    """All measurements of one seed."""
    folder = out / f"run-{seed}"
    config = merge(RunConfig(), {"seed": seed})
    train_run(config, folder)
    run = load_run(folder)
    samples, face = run.split.train, (run.recommender, run.engine)
    training, _ = cpu_of(lambda: train_adapter(*face, samples, config.train, run.start))
    single = merge(config, {"train.epochs": 1})
    work = (*face, samples, single, run.theta)
    pairs = []
    for _ in range(repeats + 1):  # the first warms up
        with tempfile.TemporaryDirectory() as scratch:
            pairs.append([epoch(work, None)["cpu"], epoch(work, Path(scratch))["cpu"]])
    epochs = [alone for alone, _ in pairs[1:]]
    added = [recorded - alone for alone, recorded in pairs[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        run.engine.load(run.theta)
        passing, _ = cpu_of(lambda: record_run(run, Path(scratch) / "store"))
    store = run.store()
    return {
        "seed": seed,
        "samples": len(samples),
        "training_cpu_seconds": training,
        "epoch_cpu_seconds": median(epochs),
        "recording_cpu_seconds": median(added),
        "recording_share_of_epoch": median(
            extra / alone for extra, alone in zip(added, epochs, strict=True)
        ),
        "scoring_pass_cpu_seconds": passing,
        "store": {"bytes": store.bytes, "rows": store.n, "dim": store.dim, "kept": store.kept},
        "gradients_bytes": 4 * store.n * run.engine.d,
        "requests": {name: one_request(run, name, repeats) for name in REQUESTS},
    }


def shares(seed: dict, name: str) -> dict[str, float]:
    """Costs as shares of training, and effects as shares of the full method's and retraining's."""
    found, metric = seed["requests"][name], METRIC[name]
    training = seed["training_cpu_seconds"]
    further = found["store"]["cpu_seconds"]
    change = {
        state: found[state]["after"][metric] - found["before"][metric]
        for state in ("store", "memory")
    }
    retrained = found["retrained"][metric] - found["before"][metric]
    return {
        "first": (further + seed["recording_cpu_seconds"]) / training,
        "further": further / training,
        "without_recorder": (further + seed["scoring_pass_cpu_seconds"]) / training,
        "full_method": found["memory"]["cpu_seconds"] / training,
        "effect": change["store"] / change["memory"],
        "of_retraining": change["store"] / retrained,
        "relative_change": change["store"] / found["before"][metric],
    }


def bars(seeds: list[dict]) -> list[dict]:
    """What was asked, aimed at and measured; means over the seeds."""

    def row(name: str, measured: float, asked: float, aim: float, least: bool = False) -> dict:
        met = measured >= asked if least else measured <= asked
        reached = measured >= aim if least else measured <= aim
        return {"bar": name, "measured": measured, "asked": asked, "met": met,
                "aim": aim, "aim_reached": reached}  # fmt: skip

    recording = mean(seed["recording_share_of_epoch"] for seed in seeds)
    size = mean(seed["store"]["bytes"] / seed["gradients_bytes"] for seed in seeds)
    rows = [
        row("recording adds to its epoch", recording, RECORDING, AIMS["recording"]),
        row("store's size beside float32 gradients", size, 0.1, 0.1),
    ]
    for name in REQUESTS:
        found = [shares(seed, name) for seed in seeds]
        means = {key: mean(each[key] for each in found) for key in found[0]}
        bare = AIMS["without_recorder"]
        rows += [
            row(f"{name}: first request", means["first"], FIRST[name], AIMS["first"][name]),
            row(f"{name}: further request", means["further"], FURTHER[name],
                AIMS["further"][name]),
            row(f"{name}: without a recorder", means["without_recorder"], WITHOUT_RECORDER, bare),
            row(f"{name}: effect of the full method's", means["effect"], EFFECT[name],
                AIMS["effect"][name], least=True),
            row(f"{name}: distance from retraining's", abs(means["of_retraining"] - 1), 0.2, 0.1),
        ]  # fmt: skip
    return rows


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/record_once"))
    parser.add_argument("--only", type=int, help="Measure one seed, and write no result.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds if arguments.only is None else [arguments.only]:
        path = arguments.out / f"seed-{seed}.json"
        if not path.exists():
            write_json(path, of_seed(seed, arguments.repeats, arguments.out))
    if arguments.only is not None:
        return
    seeds = [json.loads((arguments.out / f"seed-{s}.json").read_text()) for s in arguments.seeds]
    listed = " ".join(map(str, arguments.seeds))
    record = {
        "command": f"python benchmarks/record_once.py --seeds {listed} "
        f"--repeats {arguments.repeats}",
        "machine": describe(),
        "bars": bars(seeds),
        "shares": {name: [shares(seed, name) for seed in seeds] for name in REQUESTS},
        "seeds": seeds,
    }
    write_json(RESULT, record)
    for line in record["bars"]:
        word = "met   " if line["met"] else "missed"
        limits = f"asked {line['asked']}, aim {line['aim']}"
        print(f"{word}  {line['bar']}: {line['measured']:.4f} ({limits})")


if __name__ == "__main__":
    main()
