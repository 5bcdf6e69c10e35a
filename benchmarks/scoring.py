"""Scoring samples with 8 vectors: the engine, the peft step, the frozen limit and other libraries.

    python benchmarks/scoring.py                          # all sizes, all rivals, titles
    python benchmarks/scoring.py --hidden 128 --rivals hooks vmap_grad --repeats 3 --titles no
    python benchmarks/scoring.py --base bfloat16 bitsandbytes-4 --rivals  # 16 bits, or quantised

Work: workload.py. Everything runs in turn in one process of the rivals' environment
(rivals/requirements.txt), so that load disturbs all alike; each round's times are compared with
those of the same round. Answers are compared with the engine's before anything is timed, and the
engine's with single backward passes of the peft model. A rival that cannot run is a row with its
error. With one thread times are processor time; with two, wall time.

Speeds are times of `peft`: the median over rounds of its time over the row's. The result goes to
benchmarks/results/scoring.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, bar, interleaved, write_result
from fudlr.config import RunConfig
from fudlr.data.fetch import load_ml100k
from fudlr.data.interactions import Samples
from fudlr.recommenders.templates import load_template
from fudlr.recommenders.titles import Titles
from fudlr.train.pretrain import train_tokenizer
from rivals import RIVALS, load
from transformers import LlamaForCausalLM
from workload import (
    BASES,
    FACE,
    SIZES,
    VECTORS,
    VOCABULARY,
    Work,
    adapted,
    frozen_pass,
    held_as,
    llama_config,
    peft_at_labels,
    peft_step,
)

from fudlr_ext import Engine

TOLERANCE = 1e-3  # kronfluence's EK-FAC vectors are of its own scale; others agree to 1e-5
SCORING = {512: (1.3, 1.2), 256: (1.4, 1.3), 128: (1.7, 1.5)}
"""Least speed in peft steps, and beside the fastest peer."""
TITLES = 2.0
BASE, TITLES_OF, QUANTISED = {"bfloat16": 1.5}, {"bfloat16": 1.7}, 1.1
"""Least speed in peft steps where the base is not float32: of products, and of titles."""
ERROR = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Of one sample's products beside peft's own single pass: rounding, by the base's type."""
BATCH, BATCHES = 16, 4
"""Of prompts of titles."""
OURS = "fudlr_ext"
IN_FLOAT32 = "fudlr_ext, base in float32"
COMPILED = "frozen limit, torch.compile"


def speeds(found: dict[str, Any], clock: str) -> dict[str, Any]:
    """Rows of the table: each round's `peft` over the row's own time."""
    unit = found["peft"][clock]
    rows = {}
    for name, times in found.items():
        each = sorted(u / t for u, t in zip(unit, times[clock], strict=True))
        quarter = len(each) // 4
        rows[name] = {
            "seconds": statistics.median(times[clock]),
            "speed": statistics.median(each),
            "middle_half": [each[quarter], each[-1 - quarter]],
        }
    return rows


def agreement(work: Work, scores: torch.Tensor, vectors: torch.Tensor) -> float:
    """Relative error beside the engine's products with the same vectors."""
    expected = work.engine.sample_dots(*FACE, work.batch, vectors)
    error = float((scores.detach() - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise RuntimeError(f"its answers differ from the engine's by {error:.2g}")
    return error


def check_engine(work: Work) -> float:
    """The engine's products beside those of single backward passes of the peft model."""
    parameters = dict(work.model.named_parameters())
    named = work.split(work.vectors)
    worst = 0.0
    got = work.engine.sample_dots(*FACE, work.batch, work.vectors)
    for i in (0, len(got) - 1):
        one = {key: value[i : i + 1] for key, value in work.batch.items()}
        peft_at_labels(work.model, one)
        products = sum(
            vector.flatten(1) @ parameters[name].grad.flatten()  # type: ignore[union-attr]
            for name, vector in named.items()
        )
        worst = max(worst, float((got[i] - products).norm() / products.norm()))  # type: ignore
    if worst > ERROR.get(work.base, 1e-4):
        raise SystemExit(f"the engine differs from single passes by {worst:.2g}; nothing was timed")
    return worst


def synthetic(
    hidden: int, names: list[str], repeats: int, threads: int, *, compiled: bool, base: str
) -> dict[str, Any]:
    """One size: all rows, timed in turn."""
    torch.set_num_threads(threads)
    work = Work(hidden, base=base)
    errors: dict[str, float] = {OURS: check_engine(work)}
    failed = {}
    calls: dict[str, Callable[[], object]] = {
        "peft": lambda: peft_step(work.model, work.batch),
        "peft, logits at labels": lambda: peft_at_labels(work.model, work.batch),
        "frozen limit": lambda: frozen_pass(work.frozen, work.batch),
        OURS: lambda: work.engine.sample_dots(*FACE, work.batch, work.vectors),
    }
    if base != "float32":
        exact = Work(hidden)
        calls[IN_FLOAT32] = lambda: exact.engine.sample_dots(*FACE, exact.batch, exact.vectors)
    if compiled:
        frozen = torch.compile(work.frozen)
        calls[COMPILED] = lambda: frozen_pass(frozen, work.batch)
    for name in names:
        label = RIVALS[name]
        try:
            call, vectors = load(name)(work)
            call()  # a second time must give the same
            errors[label] = agreement(work, call(), vectors)
            calls[label] = call
        except Exception as error:
            failed[label] = f"{type(error).__name__}: {error}".splitlines()[0]
    rows = speeds(interleaved(calls, repeats), "cpu_all_s" if threads == 1 else "wall_all_s")
    for name, error in errors.items():
        rows[name]["error"] = error
    positions, samples = SIZES[hidden]
    shape = {
        "base": base,
        "hidden": hidden,
        "positions": positions,
        "samples": samples,
        "threads": threads,
    }
    return {**shape, "rows": rows, "failed": failed, "ran": str(work.engine.report())}


def title_batches(hidden: int, base: str) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A peft model of this width, and batches of random samples' prompts with their titles."""
    data = load_ml100k()
    config = RunConfig.model_validate({"data": {"window": 10}})
    titles = data.items["title"].to_list()
    tokenizer = train_tokenizer(load_template("bigrec"), titles, VOCABULARY)
    torch.manual_seed(0)
    model = adapted(held_as(LlamaForCausalLM(llama_config(hidden, len(tokenizer))), base))
    recommender = Titles(model, tokenizer, data, config)
    starts = data.user_starts[data.user]
    later = np.flatnonzero(np.arange(len(data)) > starts)
    chosen = np.random.default_rng(0).choice(later, BATCH * BATCHES, replace=False)
    samples = Samples(data, np.sort(chosen)[np.random.default_rng(1).permutation(len(chosen))])
    return model, list(recommender.batches(samples, BATCH))


def titles(hidden: int, repeats: int, threads: int, base: str) -> dict[str, Any]:
    """Title prompts: the peft step pads and computes all logits, as its users do."""
    torch.set_num_threads(threads)
    model, batches = title_batches(hidden, base)
    engine = Engine(model)
    vectors = engine.sample_grads(*FACE, {k: v[:VECTORS] for k, v in batches[0].items()})

    def peft() -> None:
        for batch in batches:
            peft_step(model, batch)

    def ours() -> None:
        for batch in batches:
            engine.sample_dots(*FACE, batch, vectors)

    found = interleaved({"peft": peft, OURS: ours}, repeats)
    masks = [batch["attention_mask"] for batch in batches]
    lengths = torch.cat([mask.sum(1) for mask in masks])
    return {
        "base": base,
        "hidden": hidden,
        "threads": threads,
        "samples": len(lengths),
        "batch": BATCH,
        "tokens": [int(lengths.min()), float(lengths.float().mean()), int(lengths.max())],
        "padding": 1 - float(lengths.sum()) / sum(mask.numel() for mask in masks),
        "rows": speeds(found, "cpu_all_s" if threads == 1 else "wall_all_s"),
    }


def bars(cases: list[dict[str, Any]], title_cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked beside what was measured, on one thread."""
    found = []
    ways = ("peft", "peft, logits at labels", "frozen limit", COMPILED, IN_FLOAT32, OURS)
    for case in (case for case in cases if case["threads"] == 1):
        speed = {name: row["speed"] for name, row in case["rows"].items()}
        if case["base"] != "float32":
            name, least = f"{case['base']}, hidden {case['hidden']}", BASE.get(case["base"])
            found.append(bar(f"{name}: over peft's step", speed[OURS], least or QUANTISED))
            continue
        step, peer = SCORING[case["hidden"]]
        name = f"hidden {case['hidden']}: over"
        found.append(bar(f"{name} peft's step", speed[OURS], step))
        found.append(bar(f"{name} the limit", speed[OURS] / speed["frozen limit"], 0.9))
        peers = {name: value for name, value in speed.items() if name not in ways}
        if peers:
            best = max(peers, key=lambda name: peers[name])
            found.append(bar(f"{name} {best}", speed[OURS] / peers[best], peer))
    for case in (case for case in title_cases if case["threads"] == 1):
        exact = case["base"] == "float32"
        name = f"titles, {'' if exact else case['base'] + ', '}hidden {case['hidden']}"
        least = TITLES if exact else TITLES_OF.get(case["base"], QUANTISED)
        found.append(bar(name, case["rows"][OURS]["speed"], least))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--hidden", type=int, nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--base", nargs="+", choices=BASES, default=["float32"])
    parser.add_argument("--compile", choices=("yes", "no"), default="no")
    parser.add_argument("--titles", choices=("yes", "no"), default="yes")
    parser.add_argument("--out", type=Path, default=RESULTS / "scoring.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    cases, title_cases = [], []
    for base, hidden, threads in itertools.product(args.base, args.hidden, args.threads):
        names = args.rivals if threads == 1 else []
        ways = {"compiled": args.compile == "yes", "base": base}
        cases.append(synthetic(hidden, names, args.repeats, threads, **ways))
        print(json.dumps({k: round(r["speed"], 3) for k, r in cases[-1]["rows"].items()}),
              cases[-1]["failed"], flush=True)  # fmt: skip
        if args.titles == "yes":
            title_cases.append(titles(hidden, args.repeats, threads, base))
            print("titles", title_cases[-1]["rows"][OURS]["speed"], flush=True)
    torch.set_num_threads(min(args.threads))
    chosen = " ".join(map(str, args.hidden))
    rest = [f"--compile {args.compile}"]
    if args.base != ["float32"]:
        rest += ["--rivals", *args.rivals, "--titles", args.titles, "--base", *args.base]
    write_result(
        args.out,
        f"python benchmarks/scoring.py --hidden {chosen} --repeats {args.repeats} "
        f"--threads {' '.join(map(str, args.threads))} {' '.join(rest)}",
        bars=bars(cases, title_cases),
        cases=cases,
        titles=title_cases,
    )


if __name__ == "__main__":
    main()
