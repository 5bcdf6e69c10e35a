"""Semantic IDs on MovieLens-100k, three codes an item: debiased, and held against retraining.

    python benchmarks/semantic_ids.py [--seeds 0 1] [--out out/semantic_ids]

Codes are made of titles, years and genres by residual k-means. The demo's small Llama is pretrained
on the older halves and an adapter trained on the newer ones with the codes' rows of the embedding,
which the output matrix is tied to; the update lowers ARP, and a retraining without the same samples
is what it should have been. Finished seeds in --out are kept. Writes
benchmarks/results/semantic_ids.json.
"""

import argparse
import copy
import json
from pathlib import Path
from statistics import mean

import fudlr
import numpy as np
import torch
from common import RESULTS, bar, interleaved, write_result
from fudlr.config import merge
from fudlr.data import load_ml100k, make_codes
from fudlr.recommenders import Recommender
from fudlr.run import Run
from fudlr.verify import Checks, verify_result

from fudlr_ext import Engine

METRICS = ("arp_soft", "arp", "aplt", "hr@10", "ndcg@10", "test_loss")
STATES = ("before", "after", "retrained")
TEMPLATE = "prompt: '{history} next '\nseparator: ''\nitem: '{title}'\nanswer: '{title}'\n"
SAMPLES, USERS, BEAMS = 32, 100, 20


def gradient_errors(run: Run) -> dict[str, dict[str, float]]:
    """Largest distance of a sample's gradient from autograd's on it alone, over the latter's norm:
    of the token rows and of all LoRA matrices, beside autograd's own from what it is in float64.
    """
    engine, made = run.engine, run.recommender
    samples = run.split.train.take(np.arange(SAMPLES))
    engine.load(run.theta)
    found = engine.sample_grads(made.forward, made.loss, made.batch(samples))
    exact = Engine(copy.deepcopy(made.model).double())
    is_row = torch.tensor(["trainable_tokens" in name for name in engine.names])
    is_row = is_row.repeat_interleave(torch.tensor([p.numel() for p in engine.parameters()]))
    parts = {"token rows": is_row, "LoRA": ~is_row}
    worst = {name: {"engine": 0.0, "autograd_rounding": 0.0} for name in parts}
    for i in range(SAMPLES):
        batch = made.batch(samples.take(np.arange(i, i + 1)))
        single, double = (alone(made, each, batch) for each in (engine, exact))
        for name, part in parts.items():
            for key, ours, other in (
                ("engine", found[i], single), ("autograd_rounding", single, double)
            ):  # fmt: skip
                error = float((ours[part] - other[part]).norm() / other[part].norm())
                worst[name][key] = max(worst[name][key], error)
    return worst


def alone(made: Recommender, engine: Engine, batch: dict) -> torch.Tensor:
    """The gradient [d] of the one sample's loss by autograd."""
    loss = made.loss(made.forward(engine.model, batch), batch).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, engine.parameters())])


def scoring(run: Run) -> dict[str, float]:
    """Exact scores beside beam search: tokens, seconds for each user, and shared items of lists."""
    made, users = run.recommender, run.split.test.take(np.arange(USERS))
    run.engine.load(run.theta)
    side = run.test.side
    seen = side.seen[:USERS]
    spent = interleaved(
        {"exact": lambda: made.evaluate(users), "beams": lambda: made.best(users, side.k, BEAMS)}, 3
    )
    exact = made.evaluate(users)[0].masked_fill(seen, -torch.inf).topk(side.k).indices
    lists = made.best(users, side.k, BEAMS, seen)
    prompt = float(made.lengths(users).float().mean()) - 3
    nodes, items = len(made.catalogue.tree), made.n_items
    return {
        "prompt_tokens": prompt,
        "beginnings": nodes,
        "tokens_fewer": items * (prompt + 2) / (prompt + nodes),
        "exact_cpu_s": spent["exact"]["cpu_s"] / USERS,
        "beams_cpu_s": spent["beams"]["cpu_s"] / USERS,
        "list_overlap": float((lists[:, :, None] == exact[:, None]).any(1).float().mean()),
    }


def one(seed: int, out: Path, codes: Path) -> dict:
    """Train, debias and retrain with one seed."""
    template = out / "template.yaml"
    template.write_text(TEMPLATE)
    options = {
        "seed": seed, "data.window": 10, "recommender.kind": "semantic_ids",
        "recommender.codes": str(codes), "recommender.template": str(template),
    }  # fmt: skip
    run = fudlr.train_run(merge(fudlr.RunConfig(), options), out / f"run-{seed}", overwrite=True)
    result = fudlr.debias(run, objective="arp", curve=(), heldout=False)
    folder = fudlr.write_result(out / f"result-{seed}", result)
    verify_result(folder, None, Checks(processes=1), "cpu")
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "seed": seed,
        **{state: {name: summary[state][name] for name in METRICS} for state in STATES},
        "update": summary["config"]["debias"]["update"],
        "parameters": run.engine.d,
        "samples": len(run.split.train),
        "seconds": summary["seconds"],
        "warnings": summary["warnings"],
    }


def share(records: list[dict], name: str) -> float:
    """The update's change over retraining's, of means over the seeds."""
    before, after, again = (mean(r[state][name] for r in records) for state in STATES)
    return (after - before) / (again - before)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("out/semantic_ids"))
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    items = load_ml100k().items
    codes, moved = make_codes(items)
    path = given.out / "codes.json"
    path.write_text(json.dumps(dict(zip(items["item_id"], codes, strict=True))))
    records = []
    for seed in given.seeds:
        kept = given.out / f"seed-{seed}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(one(seed, given.out, path)))
        records.append(json.loads(kept.read_text()))
    run = fudlr.load_run(given.out / f"run-{given.seeds[0]}")
    errors = gradient_errors(run)
    worst = max(each["engine"] for each in errors.values())
    each = [share([record], "arp_soft") for record in records]
    write_result(
        RESULTS / "semantic_ids.json",
        f"python benchmarks/semantic_ids.py --seeds {' '.join(map(str, given.seeds))}",
        codes={
            "items": len(codes),
            "moved": moved,
            "tokens": len({code for own in codes for code in own}),
        },
        gradient_errors=errors,
        scoring=scoring(run),
        seeds=records,
        over_retraining={name: share(records, name) for name in ("arp_soft", "arp")},
        over_retraining_each=each,
        bars=[
            bar("gradients equal batches of one", worst, 1e-5, least=False),
            bar("change of ARP's surrogate within 20% of retraining's, worst seed",
                max(abs(value - 1) for value in each), 0.2, least=False),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
