"""Kills, several processes, memory: real subprocesses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fudlr.gradients.store import Store, StoreError, StoreWriter
from store_cases import BINDING, random_rows, write_store

ROOT = Path(__file__).parents[3]


def run(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_killed_at_random_moments_a_resumed_store_is_the_undisturbed_one(tmp_path):
    out = tmp_path / "kills.json"
    run("benchmarks/store_kills.py", "--kills", "9", "--seed", "3", "--out", str(out))
    result = json.loads(out.read_text())
    assert result["kills"] >= 9
    for scenario in result["scenarios"]:
        assert scenario["content_equal"]
        assert scenario["files_equal"]
        assert scenario["rows"] == result["rows"]
        assert scenario["leftovers"] == []
    # The kills must have hit the middle of the work, or they show nothing.
    stored = [n for s in result["scenarios"] for n in s["rows_stored_after_each_kill"]]
    assert any(0 < n < result["rows"] for n in stored)


WRITE = """
import os, sys
from pathlib import Path
import torch
sys.path.insert(0, "tests/fudlr/store")
from store_cases import BINDING, random_rows
from fudlr.gradients.store import StoreWriter
folder = Path(sys.argv[1])
rows = random_rows(90, 17)
torch.set_num_threads(1)
children = []
for rank in range(3):
    child = os.fork()
    if child:
        children.append(child)
        continue
    code = 1
    try:
        with StoreWriter(folder, BINDING, 17, "int8", writer=str(rank), shard_rows=3) as store:
            for i in torch.arange(rank, 90, 3).split(2):
                store.append(i, rows[i])
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
"""


def test_three_processes_write_one_store(tmp_path):
    folder = tmp_path / "store"
    run("-c", WRITE, str(folder))
    alone = write_store(tmp_path / "alone", random_rows(90, 17), "int8")
    store = Store.open(folder, BINDING, check="full")
    assert store.info()["writers"] == ["0", "1", "2"]
    assert store.content_sha256() == alone.content_sha256()
    listed = json.loads((folder / "manifest.json").read_text())["shards"]
    assert len(listed) == len(store.shards) == 3 * 10


def test_a_writers_name_is_held_by_one_at_a_time(tmp_path):
    with StoreWriter(tmp_path, BINDING, 4):
        with pytest.raises(StoreError, match="another process"):
            StoreWriter(tmp_path, BINDING, 4)
        StoreWriter(tmp_path, BINDING, 4, writer="1").close()
    StoreWriter(tmp_path, BINDING, 4).close()
    assert not list(tmp_path.glob(".writer*"))


MEMORY = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, "tests/fudlr/store")
from store_cases import BINDING
from fudlr.gradients.store import Store, StoredRows, StoreWriter

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

torch.set_num_threads(1)
n, p, folder = 200_000, 500, Path(sys.argv[1])
block = torch.randn(2000, p)
with StoreWriter(folder, BINDING, p, "bfloat16", shard_rows=50_000) as store:
    for start in range(0, 20_000, 2000):
        store.append(torch.arange(start, start + 2000), block)
    before = peak()
    for start in range(20_000, n, 2000):
        store.append(torch.arange(start, start + 2000), block)
writing = peak() - before
# A child's peak starts anew; this process's does not.
import os
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
Path("/proc/self/clear_refs").write_text("5")
before = peak()
rows = StoredRows(Store.open(folder), torch.arange(n).flip(0), window_bytes=8 * 2**20)
v = torch.randn(3, p)
rows.gram_product(v); rows.dots(v); rows.sum(torch.ones(1, n))
print(writing, peak() - before)
sys.stdout.flush()
os._exit(0)
"""


def test_memory_does_not_grow_with_the_store(tmp_path):
    writing, reading = map(int, run("-c", MEMORY, str(tmp_path)).split())
    # 200,000 rows of 500 are 200 MB in bfloat16, four shards. A writer holds two, and while both
    # wait for a busy disk most of a third is in the making.
    shard = 50_000 * (500 * 2 + 8)
    assert writing < 3.2 * shard
    # A shard's mapped pages stay while it is checked and read, and the next one's join them.
    assert reading < 3.2 * shard
