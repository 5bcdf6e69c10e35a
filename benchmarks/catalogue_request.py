"""What a debias request for ARP and Hellinger takes over 10⁴ to 10⁶ items: time, and peak memory.

    python benchmarks/catalogue_request.py
    python benchmarks/catalogue_request.py --items 10000 --users 100 --out /dev/stdout

A small Llama of hidden size 128 with random weights recommends item tokens to synthetic users. The
two stages of a request that depend on the catalogue are measured, each size in a process of its
own: gradients of the metrics and of the loss on the validation prompts, and all figures on the test
prompts. Scores are kept as factors; where `DENSE` items or fewer, also as the matrices that they
are without factors, in turn. Peak memory is beside the model's weights, of which two matrices are
the items'. Times are CPU seconds of one thread. Writes benchmarks/results/catalogue_request.json.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from fudlr.config import LoraSettings, ModelConfig, RunConfig, merge
from fudlr.data import Interactions, leave_last_out
from fudlr.evaluation import make_prompts, measure
from fudlr.gradients.metric import metric_gradients
from fudlr.lora import attach
from fudlr.metrics import METRICS
from fudlr.recommenders import ItemTokens
from fudlr.train.pretrain import small_llama
from processes import peak_bytes

from fudlr_ext import Engine

HIDDEN, WINDOW, HISTORY, GENRES = 128, 8, 12, 18
DENSE = 10**5
"""Most items over which matrices are made as well."""
COMPARED = 1000
"""Users whose matrices fit into memory: a request held about eight of them."""
ROUNDS = 3
MEMORY, SHARE, LINEAR = 3.0, 0.5, 1.1


def interactions(users: int, items: int) -> Interactions:
    """`HISTORY` different items a user, popular ones more often."""
    rng = np.random.default_rng(0)
    item = (items ** rng.random((users, 2 * HISTORY))).astype(np.int64) - 1
    rows = [np.unique(row)[:HISTORY] for row in item]
    user = np.repeat(np.arange(users), [row.size for row in rows])
    chosen = np.concatenate([rng.permutation(row) for row in rows])
    gender = [str(u % 2) for u in range(users)]
    ids = [str(i) for i in range(items)]
    return Interactions(
        user,
        chosen,
        np.arange(user.size),
        pl.DataFrame({"user_id": [str(u) for u in range(users)], "gender": gender}),
        pl.DataFrame(
            {"item_id": ids, "title": ids, "genres": [[f"g{i % GENRES}"] for i in range(items)]}
        ),
    )


def request(items: int, users: int, factored: bool, evaluation: bool) -> dict[str, Any]:
    """CPU seconds of both stages, peak memory beside the weights, and some figures."""
    torch.set_num_threads(1)
    config = merge(RunConfig(), {"data.window": WINDOW, "data.source": "synthetic"})
    split = leave_last_out(interactions(users, items), pretrain_share=0.0)
    sizes = ModelConfig(hidden=HIDDEN, layers=2, heads=4, kv_heads=2, intermediate=256)
    base = small_llama(items, WINDOW, sizes, seed=0).eval()
    with torch.no_grad():
        base.get_output_embeddings().weight.mul_(10)  # scores that differ
    engine = Engine(attach(base, LoraSettings(rank=4, targets=("q_proj", "v_proj")), seed=0))
    engine.load(0.05 * torch.randn(engine.d, generator=torch.Generator().manual_seed(0)))
    recommender = ItemTokens(engine.model, None, split.interactions, config)
    recommender.engine = engine
    if not factored:
        recommender._factored = False
    assert recommender.has_factors == factored
    weights = sum(p.numel() * p.element_size() for p in engine.model.parameters())
    forget_peak()
    seconds, start = {}, time.process_time()

    def done(stage: str) -> None:
        nonlocal start
        seconds[stage], start = time.process_time() - start, time.process_time()

    valid, test = (
        make_prompts(split, samples, config.data, factored=factored)
        for samples in (split.valid, split.test)
    )
    done("prompts")
    metrics = [METRICS["arp"], METRICS["hellinger"]]
    found = metric_gradients(recommender, engine, valid.samples, valid.side, metrics)
    done("metric gradients")
    figures = {name: each.value for name, each in found.items()}
    figures |= {f"|∇ {name}|": float(each.gradient.norm()) for name, each in found.items()}
    if evaluation:
        figures |= measure(recommender, valid, test).metrics
        done("evaluation")
    return {
        "items": items,
        "users": len(valid.samples),
        "form": "factors" if factored else "matrices",
        "cpu_seconds": seconds,
        "total_cpu_seconds": sum(seconds.values()),
        "weights_gb": weights / 1e9,
        "peak_gb_beside_weights": (peak_bytes() - weights) / 1e9,
        "figures": figures,
    }


def forget_peak() -> None:
    """Have the system measure this process's peak memory anew from here."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
