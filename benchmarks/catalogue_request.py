"""What a debias request for ARP and Hellinger takes over 10⁴ to 10⁶ items: time, and peak memory.

    python benchmarks/catalogue_request.py --items 10000 100000
    python benchmarks/catalogue_request.py --items 1000000 --add
    python benchmarks/catalogue_request.py --items 10000 --users 100 --out /dev/stdout

A small Llama of hidden size 128 with random weights recommends item tokens to synthetic users. The
stages of a request that depend on the catalogue are measured, each cell in a process of its own:
the prompts with what their users have seen; gradients of both metrics and of the loss on the
validation prompts; all figures, with their losses, on the test prompts. Figures over 10⁶ items are
of a twentieth of the users. Scores are factors; over 10⁵ items, for `COMPARED` users, they are also
the matrices that they are without, in turn. Peak memory is beside the model's weights, of which two
matrices are the items'. Times are CPU seconds of one thread. Writes
benchmarks/results/catalogue_request.json; `--add` keeps the other sizes that are in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from common import RESULTS, bar, write_result
from fudlr.common.files import read_json
from fudlr.common.memory import keep_freed
from fudlr.config import DataConfig, LoraSettings, ModelConfig, RunConfig, merge
from fudlr.data import Interactions, Split, leave_last_out
from fudlr.evaluation import make_prompts, measure
from fudlr.gradients.metric import metric_gradients
from fudlr.lora import attach
from fudlr.metrics import METRICS
from fudlr.recommenders import ItemTokens
from fudlr.train.pretrain import small_llama
from processes import in_own_process, peak_bytes

from fudlr_ext import Engine

HIDDEN, WINDOW, HISTORY, GENRES = 128, 8, 12, 18
LARGE = 10**6
"""Items from which on figures are of a twentieth of the users."""
DENSE, COMPARED, ROUNDS = 10**5, 1000, 3
"""Items over which matrices are made as well, and for how many users: about eight fit at once."""
MEMORY_GB, SHARE, GROWTH = 3.0, 0.5, 1.1
"""Bars: the peak, the time over that with matrices, and the time's growth over the items'."""


def interactions(users: int, items: int) -> Interactions:
    """`HISTORY` different items a user, popular ones more often."""
    rng = np.random.default_rng(0)
    item = (items ** rng.random((users, 2 * HISTORY))).astype(np.int64) - 1
    rows = [np.unique(row)[:HISTORY] for row in item]
    user = np.repeat(np.arange(users), [row.size for row in rows])
    chosen = np.concatenate([rng.permutation(row) for row in rows])
    gender = [str(u % 2) for u in range(users)]
    table = pl.DataFrame({"item_id": np.arange(items), "genre": np.arange(items) % GENRES})
    text = pl.all().cast(pl.String)
    return Interactions(
        user,
        chosen,
        np.arange(user.size),
        pl.DataFrame({"user_id": [str(u) for u in range(users)], "gender": gender}),
        table.select(text).select(
            "item_id", pl.col("item_id").alias("title"), pl.concat_list("genre").alias("genres")
        ),
    )


def made(items: int, users: int) -> tuple[ItemTokens, Engine, Split]:
    """A recommender of random weights, its engine, and the users' prompts."""
    keep_freed()  # as the command does
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
    return recommender, engine, split


def bytes_of(engine: Engine) -> int:
    """The model's weights."""
    return sum(p.numel() * p.element_size() for p in engine.model.parameters())


def request(items: int, users: int, factored: bool, evaluation: bool) -> dict[str, Any]:
    """CPU seconds of both stages, peak memory beside the weights, and some figures."""
    recommender, engine, split = made(items, users)
    if not factored:
        recommender._factored = False
    assert recommender.has_factors == factored
    weights = bytes_of(engine)
    forget_peak()
    seconds, start = {}, time.process_time()

    def done(stage: str) -> None:
        nonlocal start
        seconds[stage], start = time.process_time() - start, time.process_time()

    valid, test = (
        make_prompts(split, samples, DataConfig(), factored=factored)
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


def cells(items: int, users: int) -> list[dict[str, Any]]:
    """All of one catalogue's, each in a process of its own."""
    found = []
    if items == DENSE:
        few = min(COMPARED, users)
        for _ in range(ROUNDS):
            found += [in_own_process(request, items, few, form, True) for form in (True, False)]
    judged = users // 20 if items >= LARGE else users
    found.append(in_own_process(request, items, judged, True, True))
    if judged < users:
        found.append(in_own_process(request, items, users, True, False))
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Nanoseconds a score of each stage by items, the comparison, and the bars."""
    own = [cell for cell in found if cell["form"] == "factors"]
    sizes = sorted({cell["items"] for cell in own})
    rows = []
    for items in sizes:
        here = [cell for cell in own if cell["items"] == items]
        most = max(here, key=lambda cell: cell["users"])
        judged = max((c for c in here if "evaluation" in c["cpu_seconds"]),
                     key=lambda cell: cell["users"])  # fmt: skip
        each = {
            "gradients": most["cpu_seconds"]["metric gradients"] / most["users"],
            "evaluation": judged["cpu_seconds"]["evaluation"] / judged["users"],
        }
        rows.append({
            "items": items,
            "users": most["users"],
            "users_judged": judged["users"],
            **{f"{name}_ms_a_user": 1e3 * value for name, value in each.items()},
            "peak_gb_beside_weights": max(cell["peak_gb_beside_weights"] for cell in here),
            "weights_gb": most["weights_gb"],
        })  # fmt: skip
    before, last = rows[-2:] if len(rows) > 1 else rows * 2
    growth = last["items"] / before["items"]
    spent = [row["gradients_ms_a_user"] + row["evaluation_ms_a_user"] for row in (before, last)]
    bars = [
        bar(f"GB beside the weights, {last['items']:,} items", last["peak_gb_beside_weights"],
            MEMORY_GB, least=False),
        bar(f"time from {before['items']:,} to {last['items']:,} items, over the items' growth",
            spent[1] / spent[0] / growth, GROWTH, least=False),
    ]  # fmt: skip
    compared = {}
    matrices = [cell for cell in found if cell["form"] == "matrices"]
    if matrices:
        pairs = [c for c in own if c["items"] == DENSE and c["users"] == matrices[0]["users"]]
        for name in ("metric gradients", "evaluation"):
            compared[name] = {
                form: statistics.median(cell["cpu_seconds"][name] for cell in each)
                for form, each in (("factors", pairs[: len(matrices)]), ("matrices", matrices))
            }
        whole = [sum(each[form] for each in compared.values()) for form in ("factors", "matrices")]
        compared["peak_gb_beside_weights"] = {
            "factors": max(cell["peak_gb_beside_weights"] for cell in pairs),
            "matrices": max(cell["peak_gb_beside_weights"] for cell in matrices),
        }
        bars.append(bar(f"time over that of matrices, {DENSE:,} items", whole[0] / whole[1], SHARE,
                        least=False))  # fmt: skip
        off = [
            abs(a - b) / max(abs(b), 1e-9)
            for name, b in matrices[0]["figures"].items()
            for a in [pairs[0]["figures"][name]]
        ]
        compared["largest_relative_difference_of_figures"] = max(off)
    return {"rows": rows, "compared": compared, "bars": bars}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "catalogue_request.json")
    given = parser.parse_args()
    found = []
    if given.add:
        kept = read_json(given.out, dict[str, Any])["cells"]
        found = [cell for cell in kept if cell["items"] not in given.items]
    for items in given.items:
        found += cells(items, given.users)
    write_result(given.out, "python benchmarks/catalogue_request.py", **summary(found), cells=found)


if __name__ == "__main__":
    main()
