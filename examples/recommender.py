"""Train a small recommender of any kind, and take its popularity bias out: a minute on one core.

python examples/recommender.py titles        # or yes_no, grounded, semantic_ids, item_tokens
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import fudlr
from fudlr.config import merge
from fudlr.data import make_codes, synthetic

SMALL = {
    "data.source": "synthetic", "data.k": 5, "data.window": 4, "data.max_train_per_user": 2,
    "data.candidates": 12, "model.hidden": 16, "model.heads": 2, "model.kv_heads": 1,
    "model.intermediate": 24, "model.pretrain_epochs": 2,
    "model.pretrain_learning_rate": 0.02, "lora.rank": 2, "train.epochs": 2, "train.batch": 64,
}  # fmt: skip
TEMPLATES = {
    "yes_no": "prompt: 'Seen: {history}. Next {item}? '\n",
    "titles": "prompt: 'Seen: {history}. Next: '\n",
    "grounded": "prompt: 'Seen: {history}. Next: '\n",
    "semantic_ids": "prompt: 'Seen: {history}. Next: '\nitem: '{title}'\nanswer: '{title}'\n",
}
# Which item is asked about is all that a yes/no model has to go by: it takes longer to learn that.
YES_NO = {
    "data.window": 2, "model.hidden": 32, "model.intermediate": 48, "model.pretrain_epochs": 8,
    "model.pretrain_learning_rate": 0.005, "recommender.negatives": 3, "train.epochs": 4,
    "train.batch": 32,
}  # fmt: skip


def main(kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = {**SMALL, **(YES_NO if kind == "yes_no" else {}), "recommender.kind": kind}
        if kind in TEMPLATES:
            own = Path(folder) / "own.yaml"
            own.write_text(TEMPLATES[kind])
            options["recommender.template"] = str(own)
        if kind == "semantic_ids":
            items = synthetic().items
            codes, _ = make_codes(items)
            file = Path(folder) / "codes.json"
            file.write_text(json.dumps(dict(zip(items["item_id"], codes, strict=True))))
            options["recommender.codes"] = str(file)
        run = fudlr.train_run(merge(fudlr.RunConfig(), options), Path(folder) / "run")
        found = fudlr.debias(
            run, objective="arp", damping=0.1, lambda_acc=0.0, curve=(), heldout=False, batch=64
        )
    before, after = found.summary["before"], found.summary["after"]
    print(f"removed {int(found.mask.sum())} of {len(found.mask)} samples")
    for name in ("arp_soft", "auc", "test_loss"):
        print(f"{name}: {before[name]:.5f} -> {after[name]:.5f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "titles")
