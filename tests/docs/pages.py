"""What the Python blocks of each page find before them: a tiny run, and the reader's own names."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import fudlr
import torch
from fudlr.gradients.store import Recorder, Store, StoredRows
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from fudlr_ext import Engine, label_logits, label_loss

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {
    "data.source": "synthetic", "data.k": 5, "data.window": 4,
    "model.hidden": 16, "model.heads": 2, "model.kv_heads": 1, "model.layers": 1,
    "model.intermediate": 16, "model.pretrain_epochs": 2, "lora.rank": 2, "train.epochs": 2,
    "debias.damping": 0.1, "debias.force": True,
}  # fmt: skip


def prelude(page: str, folder: Path) -> dict[str, Any]:
    """Names that a page takes for the reader's own."""
    make = {"metrics": _metrics, "recording": _recording, "store": _store, "grouped": _run,
            "adopt": _own, "forget": _run, "README": _own, "distributed": _distributed}  # fmt: skip
    return make.get(page, lambda folder: {})(folder)


def _run(folder: Path) -> dict[str, Any]:
    return {"run": fudlr.load_run(folder / "run")}


def _own(folder: Path) -> dict[str, Any]:
    """The reader's own rows, functions, and trained model: those of the example."""
    own = runpy.run_path(str(EXAMPLES / "own_adapter.py"))
    rows = own["make_rows"]()
    tokenised = [
        {name: value[0] for name, value in own["collate"]([row]).items()} for row in rows[0]
    ]
    items = [{"item_id": i, "genres": ["odd" if i % 2 else "even"]} for i in range(own["ITEMS"])]
    trained = own["train"](rows[0])
    return {
        **dict(zip(("train", "valid", "test"), rows, strict=True)), "items": items,
        "users": [{"user_id": i, "gender": "FM"[i % 2]} for i in range(own["USERS"])],
        "trained": trained, "model": trained, "tokenised": tokenised,
        "collate": own["collate"], "scores": own["scores"], "item_scores": own["scores"],
    }  # fmt: skip


def _metrics(folder: Path) -> dict[str, Any]:
    from fudlr import metrics

    return {name: getattr(metrics, name) for name in metrics.__all__}


def _recording(folder: Path) -> dict[str, Any]:
    """A plain loop's names: a tiny model of its own, its batches, an optimiser, a gradient."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_attention_heads=2, **sizes))
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    tokens = torch.randint(30, (96, 6))
    samples = [{"input_ids": row, "labels": row} for row in tokens]
    loader = [(ids, {"input_ids": tokens[ids], "labels": tokens[ids]})
              for ids in torch.arange(96).split(16)]  # fmt: skip
    engine, run = Engine(model), fudlr.load_run(folder / "run")
    optimiser = torch.optim.Adam(engine.parameters())
    return {
        "model": model, "wrapped": model, "samples": samples, "loader": loader,
        "engine": engine, "run": run,
        "losses": lambda model, batch: label_loss(label_logits(model, batch), batch),
        "optimiser": optimiser, "epochs": 2, "arrived": run.split.valid,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimiser),
    }  # fmt: skip


def _distributed(folder: Path) -> dict[str, Any]:
    """Those, and gradients of what a request steers by and of the loss."""
    found = _recording(folder)
    theta = found["engine"].theta()
    return {**found, "theta": theta, "fairness": torch.randn_like(theta),
            "accuracy": torch.randn_like(theta)}  # fmt: skip


def _store(folder: Path) -> dict[str, Any]:
    """A store of two epochs in the folder, vectors in its rows' space and in the adapter's."""
    found = _recording(folder)
    optimiser, model = found["optimiser"], found["model"]
    with Recorder(model, folder / "store", data="ratings of May", optimiser=optimiser) as recorder:
        for ids, batch in found["loader"] * 2:
            with recorder.batch(ids):
                found["losses"](model, batch).mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    rows = StoredRows(Store.open(folder / "store"), order=torch.arange(96))
    return {
        **found, "train_ids": torch.arange(96), "v": torch.randn(2, rows.d),
        "metric_gradients": torch.randn(2, found["engine"].d), "mask": torch.zeros(96),
    }  # fmt: skip
