"""What recording adds to the epoch that it rides on: CPU and wall seconds, interleaved.

    python benchmarks/recording.py [--seeds 0 1 2] [--repeats 5]

The demo's model and data. For each seed one epoch is trained in turn with and without a recorder,
from the same adapter; the recorded one includes choosing the directions, writing the store, and the
audit. The trained adapters are compared bit for bit. Writes benchmarks/results/recording.json.
"""

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from common import describe
from fudlr import RunConfig, lora
from fudlr.common.files import write_json
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.gradients.recording import ride_along
from fudlr.recommenders import ItemTokens
from fudlr.run import make_base, make_split, read_data
from fudlr.train.adapter import train_adapter

from fudlr_ext import Engine

RESULT = Path(__file__).parent / "results" / "recording.json"
BAR = 0.17


def epoch(work, folder) -> dict:
    """One epoch from `start`, recorded into `folder` where there is one."""
    recommender, engine, samples, config, start = work
    riding = nullcontext()
    if folder is not None:
        options = {"config": config, "run": folder, "clock": StageClock()}
        riding = ride_along(recommender, engine, samples, **options)
    cpu, wall = time.process_time(), time.perf_counter()
    with riding as observer:
        found = train_adapter(recommender, engine, samples, config.train, start, observer=observer)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "theta": found.theta,
    }


def of_seed(seed: int, repeats: int) -> dict:
    """Medians of one seed."""
    options = {"seed": seed, "train.epochs": 1, "model.pretrain_epochs": 0}
    config = merge(RunConfig(), options)
    split = make_split(read_data(config.data), config.data)
    torch.manual_seed(seed)
    base = make_base(split, config)
    model = lora.attach(base.model, config.lora, seed)
    items = split.interactions
    recommender = ItemTokens.create(model, base.tokenizer, items, config, base.record)
    engine = Engine(model)
    work = (recommender, engine, split.train, config, engine.theta())
    times = {"alone": [], "recorded": []}
    same = True
    for turn in range(repeats + 1):  # the first warms up
        with tempfile.TemporaryDirectory() as folder:
            alone, recorded = epoch(work, None), epoch(work, Path(folder))
        same &= torch.equal(alone["theta"], recorded["theta"])
        if turn:
            times["alone"].append([alone["cpu"], alone["wall"]])
            times["recorded"].append([recorded["cpu"], recorded["wall"]])
    shares = [
        [after / before - 1 for before, after in zip(*pair, strict=True)]
        for pair in zip(times["alone"], times["recorded"], strict=True)
    ]
    return {
        "seed": seed,
        "samples": len(split.train),
        "same_adapter_bit_for_bit": same,
        "cpu_share_added": median(cpu for cpu, _ in shares),
        "wall_share_added": median(wall for _, wall in shares),
        "cpu_and_wall_seconds": times,
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [of_seed(seed, arguments.repeats) for seed in arguments.seeds]
    added = max(seed["cpu_share_added"] for seed in seeds)
    same = all(seed["same_adapter_bit_for_bit"] for seed in seeds)
    command = f"--seeds {' '.join(map(str, arguments.seeds))} --repeats {arguments.repeats}"
    record = {
        "command": f"python benchmarks/recording.py {command}",
        "machine": describe(),
        "bar": {"asked": BAR, "worst_seed": added, "same": same, "met": same and added <= BAR},
        "seeds": seeds,
    }
    write_json(RESULT, record)
    for seed in seeds:
        print({key: value for key, value in seed.items() if key != "cpu_and_wall_seconds"})


if __name__ == "__main__":
    main()
