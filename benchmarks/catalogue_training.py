"""What a training step over 10⁴ to 10⁶ item tokens takes, beside peft's: time, and peak memory.

    python benchmarks/catalogue_training.py
    python benchmarks/catalogue_training.py --items 10000 --out /dev/stdout

The model of catalogue_request.py, batches of 256 histories. `fudlr` is `train_adapter` through the
engine, whose losses over so many items come from factors; `peft` the same number of steps in plain
PyTorch, with the output matrix applied to the last position alone. Each in processes of their own,
in turn; peak memory is beside the weights. Times are CPU seconds of one thread a step, `STEPS` of
them after one that is not counted. Writes benchmarks/results/catalogue_training.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from catalogue_request import bytes_of, forget_peak, made
from common import RESULTS, bar, write_result
from fudlr.config import TrainConfig
from fudlr.train.adapter import train_adapter
from processes import in_own_process, peak_bytes
from torch.nn.functional import cross_entropy

BATCH, STEPS, ROUNDS = 256, 3, 3
MEMORY, SPEED = 5.0, 1.0


def training(items: int, form: str) -> dict[str, Any]:
    """CPU seconds a step, peak memory and the losses."""
    recommender, engine, split = made(items, BATCH * (STEPS + 1))
    samples = split.train.take(slice(0, BATCH * (STEPS + 1)))
    first, rest = samples.take(slice(0, BATCH)), samples.take(slice(BATCH, None))
    weights, start = bytes_of(engine), engine.theta()
    assert recommender.has_factors
    optimiser = torch.optim.Adam(engine.parameters(), lr=1e-3)

    def by_hand(part: Any) -> list[float]:
        losses, model = [], recommender.model
        model.train()
        for index in torch.arange(len(part)).split(BATCH):
            batch = recommender.collate(part.take(index.numpy()))
            given = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
            decoder, head = model.get_decoder(), model.get_output_embeddings()
            # Of the last position alone, as rows: with logits_to_keep torch multiplies batch-wise.
            states = decoder(**given, use_cache=False).last_hidden_state[:, -1]
            loss = cross_entropy(head(states)[:, :items], batch["target"])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        return losses

    def by_fudlr(part: Any) -> list[float]:
        config = TrainConfig(epochs=1, batch=BATCH, learning_rate=1e-3)
        return train_adapter(recommender, engine, part, config, start).losses

    step = by_hand if form == "peft" else by_fudlr
    step(first)
    engine.load(start)
    forget_peak()
    began = time.process_time()
    losses = step(rest)
    return {
        "items": items,
        "form": form,
        "cpu_s_a_step": (time.process_time() - began) / STEPS,
        "peak_gb_beside_weights": (peak_bytes() - weights) / 1e9,
        "mean_loss": statistics.mean(losses),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "catalogue_training.json")
    given = parser.parse_args()
    cells, rows = [], []
    for items in given.items:
        row: dict[str, Any] = {"items": items}
        for _ in range(given.rounds):
            cells += [in_own_process(training, items, form) for form in ("fudlr", "peft")]
        for form in ("fudlr", "peft"):
            own = [cell for cell in cells if cell["items"] == items and cell["form"] == form]
            for name in ("cpu_s_a_step", "peak_gb_beside_weights", "mean_loss"):
                row[f"{form}_{name}"] = statistics.median(cell[name] for cell in own)
        row["speed"] = row["peft_cpu_s_a_step"] / row["fudlr_cpu_s_a_step"]
        row["memory"] = row["peft_peak_gb_beside_weights"] / row["fudlr_peak_gb_beside_weights"]
        rows.append(row)
    last, name = rows[-1], f"{rows[-1]['items']:,} items"
    bars = [
        bar(f"times less memory than peft's step, {name}", last["memory"], MEMORY),
        bar(f"times the speed of peft's step, {name}", last["speed"], SPEED),
    ]
    command = "python benchmarks/catalogue_training.py"
    write_result(given.out, command, batch=BATCH, rows=rows, bars=bars, cells=cells)


if __name__ == "__main__":
    main()
