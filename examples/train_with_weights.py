"""The next training of your own, with the mask as sample weights: plain PyTorch and transformers.

fudlr export RESULT --out samples.jsonl
python examples/train_with_weights.py samples.jsonl BASE_MODEL OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

EPOCHS, BATCH, RATE = 2, 16, 5e-3


def sample_losses(model, tokenizer, rows) -> torch.Tensor:
    """Each row's mean loss over its answer alone, [n]."""
    prompts = [tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in rows]
    answers = [
        [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for row in rows
    ]
    losses = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        losses.append(cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer)))
    return torch.stack(losses)


def main(samples: str, base: str, out: str) -> list[float]:
    rows = [json.loads(line) for line in Path(samples).read_text(encoding="utf-8").splitlines()]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    options = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), options)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)
    history = []
    for epoch in range(EPOCHS):
        total = 0.0
        for index in torch.randperm(len(rows)).split(BATCH):
            part = [rows[i] for i in index.tolist()]
            # Removed samples weigh nothing, and the divisor stays: the rest is trained as before.
            weights = torch.tensor([row["weight"] for row in part])
            loss = (weights * sample_losses(model, tokenizer, part)).sum() / len(part)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(part) / len(rows)
        history.append(total)
        print(f"epoch {epoch + 1}: {total:.4f}")
    model.save_pretrained(out)
    return history


if __name__ == "__main__":
    main(*sys.argv[1:])
