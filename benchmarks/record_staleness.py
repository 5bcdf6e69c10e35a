"""How stale recorded rows are: rows taken while the parameters move, beside the final adapter's.

    python benchmarks/record_staleness.py [--seeds 0 1 2] [--epochs 1 5 9 10] [--out FOLDER]

The demo's model and data. For each seed and learning-rate schedule the adapter is trained once,
and each epoch of --epochs is recorded on the way, in float32, with directions from its own first
batches. Then every row is taken again at the final adapter with the same directions. Compared are
the rows by quarter of the recorded epoch, the samples' scores (Spearman), the mask, and the change
that a request predicts and has. A seed that is in --out already is kept. Writes
benchmarks/results/record_staleness.json.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from answers import answered, changes, demo_run, jobs_of, space_of
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.gradients.recording import data_fingerprints
from fudlr.gradients.store import Recorder, Store, StoredRows
from fudlr.gradients.store.audit import row_errors
from fudlr.pipeline.request import choose_damping
from fudlr.record import record_run
from fudlr.run import Run
from fudlr.train.adapter import batch_order, train_adapter
from machine import describe
from record_once import REQUESTS
from scipy.stats import spearmanr

RESULT = Path(__file__).parent / "results" / "record_staleness.json"
SCHEDULES = ("cosine", "constant")
FLOAT32 = {"dtype": "float32", "audit": 0}


def train_and_record(run: Run, schedule: str, epochs: list[int], folder: Path) -> Run:
    """The run with the adapter that training by this schedule gives; stores in `folder`."""
    config = merge(run.config, {"train.schedule": schedule})
    samples = run.split.train
    data = data_fingerprints(run.recommender, samples, config.data.window)
    options = config.record.model_copy(update=FLOAT32)
    ids = torch.from_numpy(samples.ids)
    recorders: dict[int, Recorder] = {}

    def observer(epoch, index):
        for done in [each for each in recorders if each <= epoch]:
            recorders.pop(done).finish()
        if epoch + 1 not in epochs:
            return nullcontext()
        if epoch + 1 not in recorders:
            out = folder / str(epoch + 1)
            recorders[epoch + 1] = Recorder(run.engine, out, data=data, config=options)
        return recorders[epoch + 1].batch(ids[index])

    found = train_adapter(
        run.recommender, run.engine, samples, config.train, run.start, observer=observer
    )
    for recorder in recorders.values():
        recorder.finish()
    return replace(run, config=config, theta=found.theta, losses=found.losses, folder=None)


def by_quarter(run: Run, epoch: int, old: torch.Tensor, new: torch.Tensor) -> list[dict]:
    """Figures of the rows of each quarter of the epoch, in the order it showed them."""
    order = [index for at, index in batch_order(len(old), run.config.train) if at == epoch - 1]
    return [row_errors(old[part], new[part]) for part in torch.cat(order).chunk(4)]


def of_epoch(run: Run, epoch: int, folder: Path, asked: dict) -> dict:
    """The stale store of one epoch beside the same rows at the final adapter."""
    stale = Store.open(folder / str(epoch))
    projection = stale.projection()
    config = run.config.record.model_copy(update=FLOAT32)
    fresh = record_run(run, folder / f"{epoch}-fresh", config, projection=projection)
    ids = torch.from_numpy(run.split.train.ids)
    old, new = stale.read(ids), fresh.read(ids)
    slope = fresh.facts().mean_gradient
    damping = choose_damping(run.config.train.l2, slope, run.theta, run.start)
    spaces = [space_of(StoredRows(store, ids), projection) for store in (stale, fresh)]
    requests = {}
    for name, (job, gradients, before) in asked.items():
        before_after = [answered(job, space, gradients, damping) for space in spaces]
        scores = [found.scored.score for found in before_after]
        masks = [found.mask for found in before_after]
        requests[name] = {
            "spearman": float(spearmanr(*scores).statistic),
            "removed_in_common": int((masks[0] & masks[1]).sum()) / max(int(masks[1].sum()), 1),
            "stale": changes(run, job, before_after[0], before, name),
            "fresh": changes(run, job, before_after[1], before, name),
        }
    moved = float((old - new).norm() / new.norm())
    return {
        "epoch": epoch,
        "all": row_errors(old, new),
        "moved": moved,
        "quarters": by_quarter(run, epoch, old, new),
        "rounding_to_bfloat16": row_errors(new.bfloat16().float(), new)["error"],
        "damping": damping,
        "requests": requests,
    }


def of_seed(seed: int, epochs: list[int], out: Path) -> dict:
    """All measurements of one seed."""
    run = demo_run(seed, out)
    schedules = {}
    for schedule in SCHEDULES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            trained = train_and_record(run, schedule, epochs, folder)
            asked = jobs_of(trained, REQUESTS)
            schedules[schedule] = [of_epoch(trained, each, folder, asked) for each in epochs]
    return {"seed": seed, "samples": len(run.split.train), "schedules": schedules}


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 5, 9, 10])
    parser.add_argument("--out", type=Path, default=Path("out/record_once"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = []
    for seed in arguments.seeds:
        listed = "-".join(map(str, arguments.epochs))
        path = arguments.out / f"staleness-{seed}-{listed}.json"
        if not path.exists():
            write_json(path, of_seed(seed, arguments.epochs, arguments.out))
        seeds.append(json.loads(path.read_text(encoding="utf-8")))
    command = " ".join(
        f"--{name} {' '.join(map(str, getattr(arguments, name)))}" for name in ("seeds", "epochs")
    )
    record = {
        "command": f"python benchmarks/record_staleness.py {command}",
        "machine": describe(),
        "seeds": seeds,
    }
    write_json(RESULT, record)
    for seed in seeds:
        for schedule, rows in seed["schedules"].items():
            for row in rows:
                errors = " ".join(f"{quarter['error']:.3f}" for quarter in row["quarters"])
                said = " ".join(f"{each['spearman']:.4f}" for each in row["requests"].values())
                print(f"seed {seed['seed']} {schedule} epoch {row['epoch']}: {errors} | {said}")


if __name__ == "__main__":
    main()
