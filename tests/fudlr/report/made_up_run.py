"""A run's results made up for tests: plausible sizes, every part present."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from fudlr.config import RunConfig, to_plain

TITLES = ["Star Wars (1977)", "Toy Story (1995)", "Fargo (1996)", "Pulp Fiction (1994)"]
BEFORE = {
    "arp": 229.4, "aplt": 0.1702, "gini": 0.8811, "coverage": 0.412, "hellinger": 0.01312,
    "dp": 0.00681, "hr@10": 0.1231, "ndcg@10": 0.06274, "val_loss": 6.0412, "test_loss": 6.1120,
}  # fmt: skip
AFTER = {
    "arp": 208.3, "aplt": 0.2270, "gini": 0.8423, "coverage": 0.466, "hellinger": 0.01255,
    "dp": 0.00651, "hr@10": 0.1209, "ndcg@10": 0.06071, "val_loss": 6.0398, "test_loss": 6.1104,
}  # fmt: skip
RETRAINED = {
    "arp": 209.9, "aplt": 0.2221, "gini": 0.8455, "coverage": 0.463, "hellinger": 0.01262,
    "dp": 0.00655, "hr@10": 0.1213, "ndcg@10": 0.06083, "val_loss": 6.0401, "test_loss": 6.1109,
}  # fmt: skip
HIGHER = {"aplt", "coverage", "hr@10", "ndcg@10"}
ACCURATE = {"hr@10", "ndcg@10"}


def _around(values: dict[str, float], spread: float) -> dict[str, list[float]]:
    return {
        name: [value - abs(value) * spread, value + abs(value) * spread]
        for name, value in values.items()
    }


def _change(values: dict[str, float]) -> dict[str, list[float]]:
    width = {
        name: BEFORE[name] * (0.05 if name in ACCURATE else 0.0002 if "loss" in name else 0.01)
        for name in values
    }
    return {
        name: [value - BEFORE[name] - width[name], value - BEFORE[name] + width[name]]
        for name, value in values.items()
    }


def make_summary() -> dict[str, Any]:
    heldout = {"before": {n: v * 1.01 for n, v in BEFORE.items() if "loss" not in n}}
    heldout["after"] = {n: v * 1.008 for n, v in AFTER.items() if "loss" not in n}
    heldout["intervals"] = {
        "change": {
            name: [
                after - heldout["before"][name] * (1 + width),
                after - heldout["before"][name] * (1 - width),
            ]
            for name, after in heldout["after"].items()
            for width in [0.05 if name in ACCURATE else 0.02]
        }
    }
    return {
        "before": dict(BEFORE),
        "after": dict(AFTER),
        "retrained": dict(RETRAINED),
        "predicted": {"arp": 206.0, "hellinger": 0.01249, "val_loss": 6.0395},
        "intervals": {
            "before": _around(BEFORE, 0.02),
            "after": _around(AFTER, 0.02),
            "retrained": _around(RETRAINED, 0.02),
            "change": _change(AFTER),
            "retrained_change": _change(RETRAINED),
        },
        "heldout": heldout,
        "null": {
            "hellinger": {"mean": 0.0066, "interval": [0.0051, 0.0084], "p": 0.002},
            "dp": {"mean": 0.0041, "interval": [0.0030, 0.0055], "p": 0.011},
        },
        "most_popular": {"arp": 301.5, "ndcg@10": 0.0312},
        "directions": {name: "higher" if name in HIGHER else "lower" for name in BEFORE},
        "seconds": {
            "metric gradients": 0.48, "sample gradients": 2.12, "solve": 2.01,
            "mask": 0.01, "update": 1.04, "retraining": 14.65,
        },
        "diagnostics": [
            {
                "name": "shift", "severity": "passed", "measured": 0.165, "threshold": 0.6,
                "found": "the update shifts the adapter by 0.165 times the way that training went",
                "reason": "Real removals of 10% stay below 0.6.", "advice": "Remove fewer samples.",
            },
            {
                "name": "small_groups", "severity": "warn", "measured": 12, "threshold": 30,
                "found": "the smallest group of users, 'F', has 12 of 943",
                "reason": "A mean over so few is off.", "advice": "Join small groups.",
            },
        ],
        "config": to_plain(RunConfig()),
        "versions": {"fudlr": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "seed": 0,
        "warnings": [
            "Accuracy figures rest on 943 users: a difference below 8% in NDCG@10 is noise.",
            "Half of the Hellinger gap would be there with the groups shuffled.",
        ],
    }  # fmt: skip


def make_mask(n: int = 2000) -> pl.DataFrame:
    random = np.random.default_rng(0)
    arp = random.normal(-0.004, 0.011, n)
    accuracy = random.normal(0.0, 1.3e-5, n)
    score = arp / arp.std() + accuracy / accuracy.std()
    gone = (score < 0) & (score <= np.sort(score)[n // 10 - 1])
    target = random.zipf(1.6, n) % 40
    return pl.DataFrame(
        {
            "sample_id": np.arange(n),
            "mask": gone.astype(np.float32),
            "score": score,
            "influence_arp": arp,
            "influence_accuracy": accuracy,
            "user_id": [f"u{u}" for u in random.integers(1, 200, n)],
            "target": target,
            "target_title": [
                TITLES[t % 4] if t < 4 else f"Film number {t} (19{50 + t})" for t in target
            ],
            "history": [
                [f"Earlier film {i} ({1960 + i})" for i in range(1 + k % 7)] for k in range(n)
            ],
        }
    )


def make_curve() -> list[dict[str, Any]]:
    points = []
    for budget, predicted, measured in [
        (0.01, (225.1, 6.0406), None),
        (0.05, (214.9, 6.0399), (215.8, 6.0402)),
        (0.1, (206.0, 6.0395), (208.3, 6.0398)),
        (0.2, (192.6, 6.0421), (196.2, 6.0449)),
    ]:
        points.append({
            "budget": budget,
            "predicted": dict(zip(("arp", "val_loss"), predicted, strict=True)),
            "measured": measured and dict(zip(("arp", "val_loss"), measured, strict=True)),
        })  # fmt: skip
    return points
