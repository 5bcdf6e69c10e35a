"""The engine's fused pass on a GPU, against the CPU's; on none: tests/emu/test_emu_engine.py."""

import sys
from pathlib import Path

import pytest
import test_gpu_ops
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from engine_models import adapted, batch_of, clean, llama, relative

from fudlr_ext import Engine, decoder, decoder_jvp, decoder_layer, label_logits, label_loss, probe

pytestmark = test_gpu_ops.pytestmark
FACE = (label_logits, label_loss)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def engine_of(device, dtype=torch.float32):
    torch.manual_seed(0)
    model = llama(attn_implementation="sdpa", num_hidden_layers=3)
    model = adapted(clean(model) if dtype == torch.float64 else model, dtype)
    return Engine(model.to(device).eval())


def there(batch):
    return {key: value.cuda() for key, value in batch.items()}


@pytest.fixture
def passed(monkeypatch):
    """Device, positions and wanted ones of all fused layers, and how many tangents they took."""
    seen, along = [], []
    start, start_along = decoder_layer.Pass.__init__, decoder_jvp.LayerTangents.__init__

    def noted(self, layer, packed, x):
        seen.append((x.device.type, len(x), packed.wanted is not None and len(packed.wanted)))
        start(self, layer, packed, x)

    def noted_along(self, *given):
        start_along(self, *given)
        along.append(self.k)

    monkeypatch.setattr(decoder_layer.Pass, "__init__", noted)
    monkeypatch.setattr(decoder_jvp.LayerTangents, "__init__", noted_along)
    return seen, along


@DTYPES
def test_padded_batches_at_their_labels_equal_the_cpu(passed, dtype):
    seen, along = passed
    here, on_gpu, batch = engine_of("cpu", dtype), engine_of("cuda", dtype), batch_of()
    vectors = torch.randn(3, here.d, dtype=dtype)
    assert len(decoder.find(on_gpu.model, on_gpu._layout).layers) == 3
    real, wanted = (int(x.sum()) for x in (batch["attention_mask"], batch["labels"] != -100))
    for name in ("sample_grads", "hvp", "ggn_vp"):
        given = () if name == "sample_grads" else (vectors,)
        expected = getattr(here, name)(*FACE, batch, *given)
        seen.clear(), along.clear()
        got = getattr(on_gpu, name)(*FACE, there(batch), *given)
        assert got.device.type == "cuda"
        assert relative(got.cpu(), expected) <= (1e-4 if dtype == torch.float32 else 1e-10)
        # No padding, the last layer at label positions alone, all directions at once.
        assert seen == [("cuda", real, False)] * 2 + [("cuda", real, wanted)]
        assert along == ([] if name == "sample_grads" else [3] * 3)


@pytest.mark.parametrize("wanted", ["all", "some"])
def test_layers_never_wait(wanted):
    """Forward, backward, tangents and their backward pass; what waits for the mask comes before."""
    engine = engine_of("cuda")
    layer = decoder.find(engine.model, engine._layout).layers[-1]
    trial = probe._Trial.draw(layer, torch.float32, engine._layout.device)
    trial = trial if wanted == "all" else trial.of_some_positions()
    x, k = trial.x, probe.DIRECTIONS
    count = len(x) if wanted == "all" else len(trial.packed.wanted)
    given = [
        torch.randn(size, *x.shape[1:], device=x.device) for size in (count, k * len(x), k * count)
    ]
    delta, along, changes = given[0], given[1].view(k, *x.shape), given[2].view(k, count, -1)
    before = probe._our_derivatives(layer, trial, delta, along, changes)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        after = probe._our_derivatives(layer, trial, delta, along, changes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, before, after))


def test_tf32_is_the_callers_to_allow():
    """The probe computes without it, and leaves it as it was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        engine = engine_of("cuda")
        assert len(decoder.find(engine.model, engine._layout).layers) == 3
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_under_autocast_the_model_runs_its_own_code():
    engine, batch = engine_of("cuda"), there(batch_of())
    with torch.autocast("cuda", torch.bfloat16):
        assert engine.sample_grads(*FACE, batch).isfinite().all()
        assert not engine.report().fused_layers
    assert len(decoder.find(engine.model, engine._layout).layers) == 3
