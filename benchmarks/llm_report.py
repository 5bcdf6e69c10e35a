"""The real run's result file (see `llm.py`)."""

import json
from pathlib import Path

import smollm
import torch
from fudlr.common.files import write_json
from fudlr.config import load_config
from fudlr.evaluation import make_prompts
from fudlr.metrics import top_k
from fudlr.run import make_split
from llm_work import (
    USUAL,
    Work,
    adapters,
    changes_file,
    made_again,
    seeded,
    titles_file,
    verified_requests,
)
from machine import describe
from safetensors.torch import load_file

WITHIN = 0.3
"""Of retraining's change of ARP: the bar for the closed form's."""

APART = 2
"""Items named whose parts in two changes of ARP differ most."""


def report(work: Work) -> None:
    """What is there: requests not verified yet, and titles not scored, are named as such."""
    done = verified_requests(work)
    if "arp" not in done:
        raise SystemExit(
            f"{work.out} has no result yet: the request for ARP, which the bar is about, is not "
            "verified. Run the stages before: python benchmarks/llm.py, without names of stages"
        )
    run, times = work.loaded, json.loads((work.out / "stages.json").read_text(encoding="utf-8"))
    results = {name: outcome(work.out / name) for name in done}
    name = "llm_small.json" if work.small else "llm.json"
    command = "python benchmarks/llm.py" + (" --small" if work.small else "")
    command += f" --way {work.way}" if work.way != USUAL else ""
    again = {name: gone_again(work, name) for name in done if made_again(name)(work)}
    more = [f"again-{name}" for name in again]
    more += [f"seeds-{name}" for name in done if seeded(name)(work)]
    found = {
        "command": " && ".join([command, *(f"{command} {stage} report" for stage in more)]),
        "way": work.way,
        "model": smollm.NAME + (", first two layers" if work.small else ""),
        "samples": len(run.split.train),
        "users": len(run.split.test),
        "items": run.interactions.n_items,
        "parameters": run.engine.d,
        "losses": run.losses,
        "results": results,
        "not_run": [name for name in work.objectives if name not in done],
        "bar": f"closed form within {WITHIN:.0%} of retraining's change of ARP at a 10% budget",
        "bars": [bar(results["arp"], metric) for metric in ("arp", "arp_soft")],
        "shifts": {name: shifts(work, name) for name in done},
        "lists": {name: lists(work, name) for name in done},
        "again": again,
        "shares": {name: shares(times, name) for name in done},
        "titles": titles_found(work),
        "stages": times,
        "machine": describe(),
    }  # fmt: skip
    write_json(work.out / name, found)
    print(f"{work.out / name} is written; benchmarks/results/ keeps the real run's")


def shares(times: dict, name: str) -> dict[str, float]:
    """CPU seconds of a request's stages, evaluations in them, and their share of a retraining's."""
    named = ("record", f"debias-{name}", f"retrain-{name}")
    cpu = {stage: times.get(stage, {"cpu": 0.0})["cpu"] for stage in named}
    record, request, retraining = cpu.values()
    return {"record": record, "request": request, "retraining": retraining,
            "share": (record + request) / retraining}  # fmt: skip


def gone_again(work: Work, name: str) -> dict:
    """Figures of the replay for the request's samples, against the same retraining."""
    after = json.loads((work.out / name / "again" / "figures.json").read_text(encoding="utf-8"))
    summary = json.loads((work.out / name / "summary.json").read_text(encoding="utf-8"))
    before, retrained = summary["before"], summary["retrained"]
    agreement = {
        metric: (value - before[metric]) / (retrained[metric] - before[metric])
        for metric, value in after.items()
        if metric in retrained and retrained[metric] != before[metric]
    }
    held = {**summary, "agreement": agreement}
    return {
        "after": after,
        "agreement": agreement,
        "bars": [bar(held, metric) for metric in ("arp", "arp_soft")],
        "shifts": shifts(work, name, "again/adapter"),
    }


def shifts(work: Work, name: str, adapter: str = "adapter") -> dict[str, float]:
    """How far training, closed form and retraining move the adapter, and how alike the last two.

    `along` is retraining's part of the closed form's way: their product over its square.
    """
    flatten = work.loaded.engine.flatten
    start, trained, debiased, retrained = (
        flatten(load_file(folder / "adapter_model.safetensors")).double()
        for folder in (work.run / "start", work.run / "adapter", work.out / name / adapter,
                       work.out / name / "retrained")
    )  # fmt: skip
    ours, truth = debiased - trained, retrained - trained
    return {
        "training": float((trained - start).norm()),
        "closed_form": float(ours.norm()),
        "retraining": float(truth.norm()),
        "cosine": float(ours @ truth / (ours.norm() * truth.norm())),
        "along": float(ours @ truth / (ours @ ours)),
    }


def lists(work: Work, name: str) -> dict:
    """Whether closed form and retraining change the lists alike, whatever that does to ARP."""
    run = work.loaded
    test = make_prompts(run.split, run.split.test, run.config.data)
    listed = []
    for folder in (
        work.run / "adapter",
        work.out / name / "adapter",
        work.out / name / "retrained",
    ):
        run.engine.load(run.engine.flatten(load_file(folder / "adapter_model.safetensors")))
        scores, _ = run.recommender.evaluate(test.samples, run.config.debias.batch)
        listed.append(torch.zeros_like(scores).scatter(1, top_k(scores, test.side), 1))
    return changed_alike(*listed, torch.from_numpy(run.split.popularity.copy()))


def changed_alike(
    before: torch.Tensor, after: torch.Tensor, retrained: torch.Tensor, popularity: torch.Tensor
) -> dict:
    """How alike two changes of lists are; lists are 1 where an item is listed, `[n, M]`.

    `alike` is the mean number of items that two users' lists share before, `items` how many there
    are in all lists. Then what a user's list after retraining shares with the list before and with
    the closed form's, and the cosine of how often each item is listed more or less than before.
    `apart` are the items whose parts in the two changes of ARP differ most: their ratings
    (`popularity` `[M]`), and both parts, which over all items add up to the changes.
    """
    users = len(before)
    shared = before @ before.T
    ours, truth = (after - before).sum(0), (retrained - before).sum(0)
    parts = torch.stack([ours, truth]).double() * popularity / before.sum()
    apart = (parts[0] - parts[1]).abs().topk(APART).indices
    return {
        "items": int((before.sum(0) > 0).sum()),
        "alike": float((shared.sum() - shared.trace()) / (users * (users - 1))),
        "retrained_with_before": float((retrained * before).sum() / users),
        "retrained_with_closed_form": float((retrained * after).sum() / users),
        "exposure_cosine": float(torch.cosine_similarity(ours, truth, dim=0)),
        "apart": [
            {"ratings": int(popularity[i]), "closed_form": float(parts[0, i]),
             "retraining": float(parts[1, i])}
            for i in apart.tolist()
        ],
    }  # fmt: skip


def titles_found(work: Work) -> dict | None:
    """Figures of the adapters whose titles were scored, or None."""
    files = {name: titles_file(work, name) for name in adapters(work)}
    listed = {name: json.loads(path.read_text(encoding="utf-8"))
              for name, path in files.items() if path.is_file()}  # fmt: skip
    if not listed:
        return None
    config = load_config(work.out / "run-titles" / "config.yaml").data
    users = len(make_split(work.loaded.interactions, config).test)
    path = changes_file(work)
    changes = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"users": users, "candidates": config.candidates, "figures": listed,
            "changes": changes}  # fmt: skip


def outcome(folder: Path) -> dict:
    """What the result file keeps of one request."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    kept = ("objective", "before", "after", "retrained", "predicted", "intervals", "agreement",
            "null", "directions", "samples", "solver", "signatures", "warnings",
            "verification")  # fmt: skip
    return {name: summary[name] for name in kept}


def bar(arp: dict, metric: str = "arp") -> dict:
    """Closed form against retraining for ARP; no claim where retraining's interval covers none.

    The lists' ARP is what was asked about; its surrogate is what the request has a gradient of.
    Nor is there one where retraining in another order of the samples goes the other way: users
    drawn anew do not show that.
    """
    low, high = arp["intervals"]["retrained_change"][metric]
    agreement = arp["agreement"].get(metric)
    orders = (arp.get("verification", {}).get("seeds") or {}).get("metrics", {})
    others = orders.get(metric, {"change": []})["change"]
    sign = 1 if low > 0 else -1
    claim = (low > 0 or high < 0) and agreement is not None
    claim = claim and all(sign * change > 0 for change in others)
    return {
        "metric": metric,
        "agreement": agreement,
        "retrained_change": [low, high],
        "other_orders": others,
        "claim": claim,
        "met": abs(agreement - 1) <= WITHIN if claim else None,
    }
