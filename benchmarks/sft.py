"""What recording costs TRL's SFTTrainer: trainings with the callback and without, step by step.

    python benchmarks/sft.py [--samples 1024] [--repeats 4] [--out benchmarks/results/sft.json]

Dropout .05, no packing, LoRA of rank 16 on all linears. The two trainings are threads that take
turns after every step, each with its own random state, so that load disturbs both alike; each
counts its own thread's CPU time, the store's beginning and end included. The first pair, which pays
for what a process does once, does not count; in the others each training is the first in turn. They
must leave the same adapter, bit for bit. One epoch, where the choice of directions weighs most, and
three, the Trainer's own default, by which the bar is judged.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from common import RESULTS, bar, write_result
from fudlr.config import RecordConfig
from fudlr.gradients.store import Numbered, RecorderCallback, Store
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from workload import VOCABULARY, llama_config, prompts

from fudlr_ext import Engine

BATCH, POSITIONS = 16, 64
EPOCHS = {1: 1, 3: 2}
"""Lengths of training, and which share of the repeats each has: one in so many."""
WARM_UP = 20 * BATCH
"""Samples of the pair that does not count: enough for directions to be chosen."""
MOST = 0.15
"""Overhead that is meant to be paid at most."""


class Turns:
    """A baton between two threads; whoever has it computes."""

    def __init__(self) -> None:
        self.changed, self.whose, self.left = threading.Condition(), 0, 2

    def take(self, me: int) -> None:
        """Wait for the baton."""
        with self.changed:
            self.changed.wait_for(lambda: self.whose == me or self.left < 2)

    def give(self, me: int, *, end: bool = False) -> None:
        """Hand it over, for good where this training has come to its `end`."""
        with self.changed:
            self.whose, self.left = 1 - me, self.left - end
            self.changed.notify_all()


class InTurn(TrainerCallback):
    """Steps of one training, while another one's stand still; their CPU seconds."""

    def __init__(self, turns: Turns, me: int) -> None:
        self.turns, self.me, self.seconds = turns, me, [0.0]
        self.since = time.thread_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        """Hand over, and go on with one's own random state."""
        self.count()
        random = torch.get_rng_state()
        self.turns.give(self.me)
        self.turns.take(self.me)
        torch.set_rng_state(random)
        self.since = time.thread_time()

    def count(self) -> None:
        """Note what the thread used since."""
        self.seconds.append(time.thread_time() - self.since)


def train(
    hidden: int, samples: int, epochs: int, *, folder: Path, recorded: str | None, turn: InTurn
) -> dict[str, Any]:
    """One training, recorded with `record.epochs` as named: its seconds and its adapter."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(llama_config(hidden))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.05)
    model = get_peft_model(base, lora)
    words = models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="w0", eos_token="w1"
    )
    columns = {name: t.tolist() for name, t in prompts(POSITIONS, samples, 1).items()}
    options: dict[str, Any] = {
        "num_train_epochs": epochs, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3,
        "remove_unused_columns": False, "report_to": [], "disable_tqdm": True, "bf16": False,
        "save_strategy": "no", "logging_strategy": "no", "use_cpu": True,
        "gradient_checkpointing": False, "dataset_kwargs": {"skip_prepare_dataset": True},
    }  # fmt: skip
    callback = None
    if recorded:
        config = RecordConfig(epochs=recorded)  # type: ignore[arg-type]
        callback = RecorderCallback(folder / "store", data="samples", config=config)
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(str(folder / "out"), **options),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[*([callback] if callback else []), turn],
    )
    trainer.train_dataset = Numbered(trainer.train_dataset)
    if callback:
        trainer.data_collator = callback.collator(trainer.data_collator)
    else:
        inner = trainer.data_collator
        trainer.data_collator = lambda rows: inner(
            [{k: v for k, v in row.items() if k != "sample_id"} for row in rows]
        )
    turn.since = time.thread_time()
    trainer.train()
    turn.count()
    found = {"cpu": sum(turn.seconds), "steps": turn.seconds[1:]}
    about = {}
    if recorded:
        store = Store.open(folder / "store")
        about = {"dimension": store.dim, "bytes": store.bytes, "dropout": store.manifest.dropout}
    engine = Engine(model)
    return {**found, "theta": engine.theta(), "d": engine.d, **about}


def both(
    hidden: int, samples: int, epochs: int, *, recorded_first: bool
) -> dict[str, dict[str, Any]]:
    """Both trainings at once, a step each in turn."""
    turns, found, failed = Turns(), {}, []

    def run(me: int, recorded: str | None) -> None:
        turns.take(me)
        try:
            with tempfile.TemporaryDirectory() as folder:
                turn = InTurn(turns, me)
                found[recorded or "none"] = train(
                    hidden, samples, epochs, folder=Path(folder), recorded=recorded, turn=turn
                )
        except BaseException as error:
            failed.append(error)
        finally:
            turns.give(me, end=True)

    order = ("all", None) if recorded_first else (None, "all")
    threads = [threading.Thread(target=run, args=given) for given in enumerate(order)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "sft.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    both(args.hidden, WARM_UP, 1, recorded_first=False)
    found = {
        epochs: measured(args.hidden, args.samples, epochs, args.repeats // share)
        for epochs, share in EPOCHS.items()
    }
    write_result(
        args.out,
        f"python benchmarks/sft.py --samples {args.samples} --hidden {args.hidden} "
        f"--repeats {args.repeats}",
        work={"hidden": args.hidden, "samples": args.samples, "batch": BATCH,
              "positions": POSITIONS, "rank": 16, "dropout": 0.05, "trl": trl.__version__},
        warm_up={"samples": WARM_UP},
        epochs=found,
        bars=[bar("overhead of recording a training of three epochs, CPU time",
                  found[3]["whole"], MOST, least=False)],
    )  # fmt: skip


def measured(hidden: int, samples: int, epochs: int, repeats: int) -> dict[str, Any]:
    """Overheads of `repeats` pairs, and what each used."""
    pairs = [both(hidden, samples, epochs, recorded_first=bool(i % 2)) for i in range(repeats)]
    if not all(torch.equal(*(run.pop("theta") for run in runs.values())) for runs in pairs):
        raise SystemExit("recording left another adapter")
    each = sorted(runs["all"]["cpu"] / runs["none"]["cpu"] - 1 for runs in pairs)
    steps = [
        recorded / plain - 1
        for runs in pairs
        for recorded, plain in zip(runs["all"].pop("steps"), runs["none"].pop("steps"), strict=True)
    ]
    overhead = {
        "whole": statistics.median(each),
        "range": [each[0], each[-1]],
        "median_step": statistics.median(steps),
    }
    print(epochs, overhead, flush=True)
    return {**overhead, "runs": pairs}


if __name__ == "__main__":
    main()
