"""A stream of days on MovieLens-100k: each day's interactions appended to a store, and a request.

    python benchmarks/stream_of_days.py [--days 7] [--seed 0]

Base and adapter are trained on what is older than the cut alone. Each later day is recorded into a
store of its own, with the first store's projection, and appended; then a request is answered from
that day's rows without the old, and one from all rows so far. Both are held against one store of
everything, recorded at once. Influences on ARP. Writes benchmarks/results/stream_of_days.json.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fudlr import RunConfig, lora
from fudlr.common.files import write_json
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.data import Samples
from fudlr.debias.steps import request
from fudlr.gradients.store import Store, StoredRows, sketch_space
from fudlr.influence.curvature import EmpiricalFisher
from fudlr.influence.scores import influence
from fudlr.influence.solvers import make_solver, sampled_preconditioner
from fudlr.pipeline.evidence import PRECONDITIONER_ROWS, SKETCH_STEPS, SKETCH_TOLERANCE
from fudlr.pipeline.job import prepare, with_options
from fudlr.recommenders import ItemTokens
from fudlr.record import append_run, later_run, record_run
from fudlr.run import Run, make_base, make_split, read_data
from fudlr.train.adapter import train_adapter
from machine import describe
from scipy.stats import spearmanr

from fudlr_ext import Engine

RESULT = Path(__file__).parent / "results" / "stream_of_days.json"
DAY = 86_400


def older_part(split, cut):
    """The split with nothing in it that is not older than `cut`."""
    whole, past = split.interactions, split.interactions.time < cut
    before = np.concatenate([[0], np.cumsum(past)])
    user, start, stop = split.pretrain.T
    # Past interactions come first among a user's, so their number says where they end.
    stop = np.minimum(stop, start + before[stop] - before[start])
    counts = past.copy()
    counts[split.valid.position] = counts[split.test.position] = False
    return replace(
        split,
        pretrain=np.stack([user, start, stop], 1)[stop > start],
        train=split.train.between(0, cut),
        valid=split.valid.between(0, cut),
        test=split.test.between(0, cut),
        popularity=np.bincount(whole.item[counts], minlength=whole.n_items),
    )


def later_days(split, cut, days):
    """Each day's interactions with a history, but for those that steer and judge."""
    whole = split.interactions
    fit = np.ones(len(whole), dtype=bool)
    fit[whole.user_starts[:-1]] = False
    fit[split.valid.position] = fit[split.test.position] = False
    samples = Samples(whole, np.flatnonzero(fit))
    return [samples.between(cut + k * DAY, cut + (k + 1) * DAY) for k in range(days)]


def train(config, split) -> Run:
    """The run of the older part."""
    torch.manual_seed(config.seed)
    base = make_base(split, config)
    model = lora.attach(base.model, config.lora, config.seed)
    recommender = ItemTokens.create(model, None, split.interactions, config, base.record)
    engine = Engine(model)
    start = engine.theta()
    begin = time.perf_counter()
    found = train_adapter(recommender, engine, split.train, config.train, start)
    model.eval()
    seconds = time.perf_counter() - begin
    return Run(config, split, recommender, engine, start, found.theta, seconds, found.losses)


def timed(function, *arguments, **options):
    """(result, wall seconds)."""
    begin = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - begin


def ask(run, store):
    """A request from a store: ARP's influences [n], damping, wall seconds."""
    job = prepare(run, with_options(run.config.debias, {"store": str(store)}), StageClock())
    (evidence, found), seconds = timed(request, job)
    return found.scored.influence.of("arp"), evidence.damping, seconds


def at_once(store, ids, gradient, damping):
    """ARP's influences of the samples `ids` from the store of everything, [n]."""
    space = sketch_space(StoredRows(store, torch.from_numpy(ids)).load(), store.projection())
    part = space.rows.take(torch.arange(0, len(ids), max(1, len(ids) // PRECONDITIONER_ROWS)))
    solve = make_solver(
        EmpiricalFisher(space.rows),
        damping,
        "cg",
        max_steps=SKETCH_STEPS,
        tolerance=SKETCH_TOLERANCE,
        preconditioner=sampled_preconditioner(part, damping),
    )
    return influence(space.rows, {"arp": space.project(gradient[None])[0]}, solve).of("arp")


def agreement(mine, true):
    """Cosine, rank correlation and relative difference of two vectors of influences."""
    mine, true = mine.double(), true.double()
    return {
        "cosine": float(torch.cosine_similarity(mine, true, dim=0)),
        "spearman": float(spearmanr(mine, true).statistic),
        "relative_difference": float((mine - true).norm() / true.norm()),
    }


def stream(run, days, folder):
    """Append day after day; one entry each, and the first store's."""
    first, seconds = timed(record_run, run, folder / "0")
    projection = first.projection()
    everything = np.concatenate([run.split.train.position, *(day.position for day in days)])
    whole = later_run(run, Samples(run.interactions, everything))
    once = record_run(whole, folder / "once", projection=projection)
    job = prepare(run, run.config.debias, StageClock())
    gradient = job.gradients(job.valid)["arp"].gradient
    entries, so_far = [], run
    for number, day in enumerate(days, 1):
        new = later_run(run, day)
        _, record = timed(record_run, new, folder / f"day{number}", projection=projection)
        stores = (folder / f"{number - 1}", folder / f"day{number}")
        so_far, append = timed(append_run, so_far, new, stores, folder / f"{number}")
        answers = {}
        for name, part, store in (("new", new, stores[1]), ("all", so_far, folder / f"{number}")):
            mine, damping, took = ask(part, store)
            true = at_once(once, part.split.train.ids, gradient, damping)
            answers[name] = {"request_seconds": took, **agreement(mine, true)}
        entries.append(
            {
                "day": number,
                "new": len(day),
                "all": len(so_far.split.train),
                "record_seconds": record,
                "append_seconds": append,
                "from_new": answers["new"],
                "from_all": answers["all"],
            }
        )
        print(entries[-1], flush=True)
    joint, ids = Store.open(folder / f"{len(days)}"), torch.from_numpy(everything)
    differ = joint.read(ids) != once.read(ids)
    about = {"samples": first.n, "record_seconds": seconds}
    return about, entries, float(differ.float().mean())


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = merge(RunConfig(), {"seed": arguments.seed})
    split = make_split(read_data(config.data), config.data)
    cut = int(split.interactions.time.max()) + 1 - arguments.days * DAY
    old = older_part(split, cut)
    run = train(config, old)
    days = [day for day in later_days(old, cut, arguments.days) if len(day)]
    with tempfile.TemporaryDirectory() as folder:
        first, entries, differ = stream(run, days, Path(folder))
    record = {
        "command": f"python benchmarks/stream_of_days.py --days {arguments.days} "
        f"--seed {arguments.seed}",
        "machine": describe(),
        "cut": cut,
        "training_seconds": run.train_seconds,
        "first_store": first,
        "share_of_numbers_that_differ": differ,
        "days": entries,
    }
    write_json(RESULT, record)


if __name__ == "__main__":
    main()
