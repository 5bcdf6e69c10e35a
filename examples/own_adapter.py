"""An adapter that you trained with transformers and peft, debiased where it is: no run folder.

    python examples/own_adapter.py OUT

Made-up data; items are tokens of a small Llama. `train` is what you have already; `debias` is what
there is to write.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fudlr
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ITEMS, USERS, LENGTH, PAD = 40, 60, 10, 0


def make_rows() -> tuple[list[dict], list[dict], list[dict]]:
    """Rows to train on, and a validation and a test prompt a user; a few items are popular."""
    generator = torch.Generator().manual_seed(0)
    weights = 1 / torch.arange(1, ITEMS + 1).float()
    train, valid, test = [], [], []
    for user in range(USERS):
        taste = weights * (1 + 3 * (torch.arange(ITEMS) % 2 == user % 2))
        chosen = torch.multinomial(taste, LENGTH, generator=generator).tolist()
        for at in range(3, LENGTH):
            part = valid if at == LENGTH - 2 else test if at == LENGTH - 1 else train
            part.append({"user_id": user, "history": chosen[:at], "item_id": chosen[at]})
    return train, valid, test


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Histories and targets as tokens, padded on the left; the label is the target."""
    tokens = [[item + 1 for item in (*row["history"], row["item_id"])] for row in rows]
    padded = torch.tensor([[PAD] * (LENGTH - len(t)) + t for t in tokens])
    labels = torch.full_like(padded, -100)
    labels[:, -1] = padded[:, -1]
    return {"input_ids": padded, "attention_mask": (padded != PAD).long(), "labels": labels}


def train(rows: list[dict]) -> torch.nn.Module:
    """A LoRA adapter from a loop of one's own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=ITEMS + 1, num_attention_heads=2, pad_token_id=PAD, **sizes)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.05)
    model = get_peft_model(LlamaForCausalLM(config), lora)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        for index in torch.randperm(len(rows)).split(32):
            model(**collate([rows[i] for i in index])).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    return model.eval()


def scores(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Every item's logit before the label."""
    return model(**batch).logits[:, -2, 1:]


def debias(model: torch.nn.Module, rows: tuple[list[dict], list[dict], list[dict]], out: Path):
    """All of fudlr's part, but for `scores`."""
    train, valid, test = rows
    run = fudlr.adopt(
        model,
        train=train,
        valid=valid,
        test=test,
        collate=collate,
        scores=scores,
        items=[{"item_id": i, "genres": ["odd" if i % 2 else "even"]} for i in range(ITEMS)],
        users=[{"user_id": u, "gender": "FM"[u % 2]} for u in range(USERS)],
    )
    result = fudlr.debias(run, objective="arp", budget=0.1, force=True)
    fudlr.write_result(out, result)  # adapter/, mask.parquet, summary.json, report.html
    return result


if __name__ == "__main__":
    made = make_rows()
    found = debias(train(made[0]), made, Path(sys.argv[1]))
    changed = {name: found.summary[name]["arp"] for name in ("before", "after")}
    print(f"{int(found.mask.sum())} of {len(made[0])} rows removed; ARP {changed}")
