"""Scoring more samples takes no more memory: batches stream, gradients are never stored."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_models import adapted, batch_of, llama

from fudlr_ext import Engine, label_logits, label_loss

SCRIPT = """
import resource, sys
import torch
sys.path.insert(0, {folder!r})
from engine_models import adapted, batch_of, llama
from fudlr_ext import Engine, label_logits, label_loss

torch.set_num_threads(1)
torch.manual_seed(0)
engine = Engine(adapted(llama(hidden_size=64, intermediate_size=128), r=16))
vectors = torch.randn(4, engine.d)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def score(batches):
    for seed in range(batches):
        engine.sample_dots(label_logits, label_loss, batch_of(n=32, t=12, seed=seed), vectors)

score(8)
before = peak()
score(int(sys.argv[1]))
print(engine.d, before, peak())
"""


def test_sample_dots_streams():
    batches = 30
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    result = subprocess.run(
        [sys.executable, "-c", script, str(batches)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    d, before, after = map(int, result.stdout.split())
    stored = 32 * batches * d * 4
    assert stored > 100 * 2**20  # what keeping the gradients would have taken
    assert after - before < 16 * 2**20


@pytest.mark.parametrize("call", ["sample_dots", "fisher_vp", "hvp", "ggn_vp"])
def test_a_call_leaves_no_cycles(call):
    """What a cycle holds stays until Python collects, which few large tensors do not make it do."""
    engine = Engine(adapted(llama(hidden_size=64, intermediate_size=128), r=16))
    vectors, batch = torch.randn(2, engine.d), batch_of(n=4, t=12, seed=0)

    getattr(engine, call)(label_logits, label_loss, batch, vectors)
    gc.collect()
    gc.disable()
    try:
        getattr(engine, call)(label_logits, label_loss, batch, vectors)
        gc.set_debug(gc.DEBUG_SAVEALL)  # what is collected is kept, to be looked at
        gc.collect()
        # By its type: isinstance asks the object, and proxies answer for what is gone.
        assert not [each for each in gc.garbage if issubclass(type(each), torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
