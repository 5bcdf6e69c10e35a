#!/usr/bin/env bash
# RecBole's coverage and Gini count its padding item; its Shannon entropy is divided by the items listed.
#
# Expected: four items, each listed once for one of four users, have coverage 1, Gini index 0 and an
# entropy of log 4 = 1.386 nats. Seen: coverage .8, Gini .2 and entropy .347. dataset.item_num counts
# the padding item that RecBole puts at index 0, the collector hands it to both metrics as the size of
# the catalogue, and ShannonEntropy divides the sum of -p log p by the number of items that were
# listed at all, so that a longer tail can lower it. Small catalogues show the difference; published
# figures made by RecBole are not those of the textbook's formulas, nor of Elliot's or ours.
#
# Exits non-zero where this changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==1.26.4 pandas==2.2.3 recbole==1.2.1
cat >"$work/run.py" <<'PY'
import pathlib
import sys
import tempfile

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.evaluator import Collector, Evaluator

sys.argv = sys.argv[:1]
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "four").mkdir()
lines = [f"u{u}\ti{i}\t{u}" for u in range(1, 5) for i in range(1, 5)]
head = "user_id:token\titem_id:token\ttimestamp:float"
(folder / "four" / "four.inter").write_text("\n".join([head, *lines]) + "\n")
settings = {
    "data_path": str(folder), "metrics": ["ItemCoverage", "GiniIndex", "ShannonEntropy"],
    "topk": [1], "valid_metric": "ItemCoverage@1", "state": "ERROR", "checkpoint_dir": str(folder),
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False,
}
config = Config(model="BPR", dataset="four", config_dict=settings)
dataset = create_dataset(config)
collector = Collector(config)


class Loaded:
    """What the collector asks of a training data loader."""


train = Loaded()
train.dataset, train._dataset = dataset, dataset
collector.data_collect(train)
collector.data_struct.set("rec.items", torch.tensor([[1], [2], [3], [4]]))
found = {name.lower(): float(value) for name, value in Evaluator(config).evaluate(collector.data_struct).items()}
print("recbole", recbole.__version__, " items in the file: 4, dataset.item_num:", dataset.item_num)
print("each of the four items is listed once, for one of four users:")
for name, value in found.items():
    print(f"  {name:18} {value}")
print(f"  entropy of four equal shares, in nats: {np.log(4):.4f}; divided by four: {np.log(4) / 4:.4f}")
assert dataset.item_num == 5
assert found["itemcoverage@1"] == 0.8 and found["giniindex@1"] == 0.2
assert abs(found["shannonentropy@1"] - np.log(4) / 4) < 1e-3
PY
OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore "$work/run.py" 2>&1 | grep -v "Warning\|inplace"
