"""A transformers.Trainer of your own, recorded, and debiased when its training ends.

A tiny causal language model with a LoRA adapter learns to say the next item of a history; in half
of the samples a shop window made it one of five hits instead. Two callbacks are all that is added:
one records the training, the other takes out of the adapter, at its end, what pushes the hits, by
the unrolled update. Samples come from Hugging Face `datasets` and go back there with weights.

python examples/trainer_run.py OUT [SAMPLES]

SAMPLES is a folder that save_to_disk wrote, with the columns history and answer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from fudlr.gradients.store import Numbered, RecorderCallback, Store
from fudlr.influence.mask import threshold_mask
from fudlr.influence.unroll import Unrolled
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from fudlr_ext import Engine

ITEMS, HITS, LENGTH = 40, 5, 5
BUDGET = 0.1


def make_samples(n: int, seed: int) -> Dataset:
    """Histories whose next item is the last one's successor; in half of them a hit instead."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(ITEMS, (n, LENGTH), generator=generator)
    hit = torch.randint(HITS, (n,), generator=generator)
    window = torch.rand(n, generator=generator) < 0.5
    answer = torch.where(window, hit, (history[:, -1] + 1) % ITEMS)
    return Dataset.from_dict({"history": history.tolist(), "answer": answer.tolist()})


def tokens(row: dict) -> dict:
    """What the model is given; the loss stands on the answer alone."""
    ids = [*row["history"], row["answer"]]
    labels = [-100] * len(row["history"]) + [row["answer"]]
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}


def make_model() -> torch.nn.Module:
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    # In place of a pretrained base: weights large enough for an adapter to steer by.
    config = LlamaConfig(vocab_size=ITEMS, initializer_range=0.2, **sizes, **heads)
    base = LlamaForCausalLM(config)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"))


def hits(model, histories: torch.Tensor) -> torch.Tensor:
    """The metric: the probability that a recommendation is a hit, mean over histories."""
    return model(input_ids=histories).logits[:, -1].softmax(-1)[:, :HITS].sum(1).mean()


class DebiasAtTheEnd(TrainerCallback):
    """Updates the adapter from the store when the training ends; the mask is kept in `removed`."""

    def __init__(self, store: Path, histories: torch.Tensor) -> None:
        self.store, self.histories = store, histories
        self.removed: torch.Tensor | None = None
        self.figures: dict[str, float] = {}

    def on_train_end(self, args, state, control, model, **now):
        model.eval()
        engine, store = Engine(model), Store.open(self.store)
        unrolled = Unrolled.of(store, engine.shapes)
        metric = hits(model, self.histories)
        # A Trainer leaves the last step's gradients behind; these are the metric's own.
        found = torch.autograd.grad(metric, engine.parameters())
        gradient = torch.cat([g.flatten() for g in found])
        scores = unrolled.influence(gradient[None])[:, 0]
        self.removed = threshold_mask(scores, BUDGET).remove
        engine.load(unrolled.update(self.removed.float()))
        self.figures = {"trained": metric.item(), "debiased": hits(model, self.histories).item()}


def main(out: str, samples: str | None = None) -> dict[str, float]:
    folder = Path(out)
    rows = load_from_disk(samples) if samples else make_samples(384, seed=0)
    histories = torch.tensor(make_samples(256, seed=1)["history"])  # no sample is among them
    recorder = RecorderCallback(folder / "store", data=str(samples))
    ending = DebiasAtTheEnd(folder / "store", histories)
    arguments = TrainingArguments(
        str(folder / "trainer"), num_train_epochs=8, per_device_train_batch_size=64,
        learning_rate=5e-3, lr_scheduler_type="cosine", remove_unused_columns=False,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    data = rows.map(tokens, remove_columns=rows.column_names)
    trainer = Trainer(
        make_model(), arguments, train_dataset=Numbered(data), callbacks=[recorder, ending]
    )
    trainer.train()
    trainer.model.save_pretrained(folder / "adapter")
    # Row i of the store is sample i: Numbered counts them by position.
    weights = (1 - ending.removed.float()).tolist()
    rows.add_column("weight", weights).save_to_disk(folder / "weighted")
    print(f"{int(ending.removed.sum())} of {len(rows)} samples removed")
    for name, value in ending.figures.items():
        print(f"{name}: {value:.3f}")
    return ending.figures


if __name__ == "__main__":
    main(*sys.argv[1:])
