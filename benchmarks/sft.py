"""What recording costs TRL's SFTTrainer: whole trainings with and without the callback, in turn.

    python benchmarks/sft.py [--repeats 3] [--out benchmarks/results/sft.json]

Dropout .05, no packing, LoRA of rank 16 on all linears. All trainings must leave the same adapter,
bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
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
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from workload import VOCABULARY, llama_config, prompts

from fudlr_ext import Engine

SAMPLES, BATCH, EPOCHS, POSITIONS = 1024, 16, 2, 64
MOST = 0.15
"""Overhead that is meant to be paid at most."""


def train(hidden: int, folder: Path, recorded: str | None) -> dict[str, Any]:
    """One training, recorded with `record.epochs` as named: its seconds and its adapter."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(llama_config(hidden))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.05)
    model = get_peft_model(base, lora)
    words = models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="w0", eos_token="w1"
    )
    columns = {name: t.tolist() for name, t in prompts(POSITIONS, SAMPLES, 1).items()}
    options: dict[str, Any] = {
        "num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3,
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
        callbacks=[callback] if callback else [],
    )
    trainer.train_dataset = Numbered(trainer.train_dataset)
    if callback:
        trainer.data_collator = callback.collator(trainer.data_collator)
    else:
        inner = trainer.data_collator
        trainer.data_collator = lambda rows: inner(
            [{k: v for k, v in row.items() if k != "sample_id"} for row in rows]
        )
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    about = {}
    if recorded:
        store = Store.open(folder / "store")
        about = {"dimension": store.dim, "bytes": store.bytes, "dropout": store.manifest.dropout}
    engine = Engine(model)
    return {**found, "theta": engine.theta(), "d": engine.d, **about}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS / "sft.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, list[dict[str, Any]]] = {"none": [], "all": []}
    theta = None
    for _ in range(args.repeats):
        for name, done in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                found = train(args.hidden, Path(folder), None if name == "none" else name)
            left = found.pop("theta")
            theta = left if theta is None else theta
            if not torch.equal(left, theta):
                raise SystemExit(f"recording {name} left another adapter")
            print(name, found)
            done.append(found)
    pairs = zip(runs["all"], runs["none"], strict=True)
    shares = [a["cpu"] / b["cpu"] - 1 for a, b in pairs]
    overhead = {"each": shares, "median": statistics.median(shares)}
    write_result(
        args.out,
        f"python benchmarks/sft.py --repeats {args.repeats} --hidden {args.hidden}",
        work={"hidden": args.hidden, "samples": SAMPLES, "batch": BATCH, "epochs": EPOCHS,
              "positions": POSITIONS, "rank": 16, "dropout": 0.05, "trl": trl.__version__},
        runs=runs,
        overhead=overhead,
        bars=[bar("overhead of recording the training, CPU time", overhead["median"], MOST,
                  least=False)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
