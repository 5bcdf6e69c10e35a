"""A training loop of your own, recorded, and debiased without its data.

A tiny causal language model with a LoRA adapter learns to say the next item of a history. Half of
the samples were made by a shop window: their answer is one of five hits, whatever the history. The
recorder rides on the training; then the store alone says which samples push the hits, and what the
adapter is without them, by the unrolled update.

python examples/record_in_your_loop.py
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from fudlr.config import RecordConfig
from fudlr.gradients.store import Recorder, Store
from fudlr.influence.mask import threshold_mask
from fudlr.influence.unroll import Unrolled
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from fudlr_ext import Engine, label_logits, label_loss

ITEMS, HITS, LENGTH = 40, 5, 5
SAMPLES, BATCH, EPOCHS, RATE = 512, 64, 12, 5e-3
BUDGET = 0.1


def make_samples(seed: int) -> dict[str, torch.Tensor]:
    """Histories whose next item is the last one's successor; in half of them a hit instead."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(ITEMS, (SAMPLES, LENGTH), generator=generator)
    answer = (history[:, -1] + 1) % ITEMS
    hit = torch.randint(HITS, (SAMPLES,), generator=generator)
    answer = torch.where(torch.rand(SAMPLES, generator=generator) < 0.5, hit, answer)
    ids = torch.cat([history, answer[:, None]], 1)
    labels = ids.clone()
    labels[:, :-1] = -100  # the answer alone is learnt
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    # In place of a pretrained base: weights large enough for an adapter to steer by.
    config = LlamaConfig(vocab_size=ITEMS, initializer_range=0.2, **sizes, **heads)
    base = LlamaForCausalLM(config)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"))


def train(model, samples, weights, store=None) -> None:
    """Train the adapter, recording into `store` if named. A sample of weight 0 is left out."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS * SAMPLES // BATCH)
    order = torch.Generator().manual_seed(1)
    options = RecordConfig()
    recorder = store and Recorder(model, store, data=samples, config=options, optimiser=optimiser)
    for _ in range(EPOCHS):
        for index in torch.randperm(SAMPLES, generator=order).split(BATCH):
            batch = {name: values[index] for name, values in samples.items()}
            with recorder.batch(index) if recorder else nullcontext():
                losses = label_loss(label_logits(model, batch), batch)  # [n]
                (weights[index] * losses).mean().backward()  # divided by n, as the recorder expects
            optimiser.step()
            optimiser.zero_grad()
            falling.step()
    if recorder:
        recorder.finish()


def hits(model, samples) -> torch.Tensor:
    """The metric: the probability that a recommendation is a hit, mean over histories."""
    return label_logits(model, samples)[:, 0].softmax(-1)[:, :HITS].sum(1).mean()


def main(folder: Path) -> dict[str, float]:
    samples, others, every = make_samples(0), make_samples(1), torch.ones(SAMPLES)
    model = make_model()
    engine = Engine(model)  # orders the adapter's parameters as one vector
    start = engine.theta()
    train(model, samples, every, folder / "store")

    # From here on the training data are not needed: the rows stand for them.
    store = Store.open(folder / "store")
    unrolled = Unrolled.of(store, engine.shapes)
    model.eval()
    metric = hits(model, others)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(metric, engine.parameters())])

    found = unrolled.influence(gradient[None])[:, 0]
    mask = threshold_mask(found, BUDGET)
    updated = unrolled.update(mask.remove.float())

    figures = {"trained": metric.item()}
    figures["predicted without"] = metric.item() + found[mask.remove].sum().item()
    engine.load(updated)
    figures["unrolled"] = hits(model, others).item()
    engine.load(start)
    train(model, samples, every - mask.remove.float())
    figures["retrained without"] = hits(model.eval(), others).item()
    answers = samples["input_ids"][mask.remove, -1]
    figures["hits among the removed"] = (answers < HITS).float().mean().item()
    print(f"{mask.removed} of {store.n} samples removed")
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    return figures


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
