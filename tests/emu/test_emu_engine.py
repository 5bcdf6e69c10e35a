"""The engine's fused pass as a GPU would run it: every tensor on its device, by its kernels.

On a GPU that is none (pretended.py): an op over two devices is an error, waits are written down,
and the library's ops run by their emulated kernels, over new tensors full of NaN.
"""

import copy
import sys
from pathlib import Path

import emulation
import pretended
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from engine_models import (
    adapted,
    batch_of,
    clean,
    llama,
    lora_parameters,
    plain_grads,
    relative,
)

from fudlr_ext import (
    Engine,
    decoder,
    decoder_jvp,
    decoder_layer,
    label_logits,
    label_loss,
    probe,
    unchanged,
)

FACE = (label_logits, label_loss)
unchanged.PLAIN.add(pretended.Pretended)
DECODER = {
    schema.name.removeprefix("fudlr_decoder::")
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("fudlr_decoder::")
}
# What waits beside the layers: the caller's forward and loss, their check, vectors from the host.
OUTSIDE = ("labels.py:", "collect.py:check_losses", "engine.py:_vectors")
pytestmark = pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="this torch has GPUs of its own: tests/gpu"
)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    """Whether this library was built with kernels for GPUs or not."""
    monkeypatch.setattr(decoder._C, "devices", lambda: ["cpu", "cuda"])


@pytest.fixture
def few(monkeypatch):
    """A probe of few positions, where it is not what is looked at."""
    monkeypatch.setitem(probe.POSITIONS, "cuda", 6)


@pytest.fixture
def passed(monkeypatch):
    """Where the fused layers' inputs lay, and whether some positions alone were wanted."""
    seen = []
    start = decoder_layer.Pass.__init__

    def noted(self, layer, packed, x):
        seen.append((x.device.type, packed.wanted is not None))
        start(self, layer, packed, x)

    monkeypatch.setattr(decoder_layer.Pass, "__init__", noted)
    return seen


def model_of(base=llama, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = base(attn_implementation="sdpa", **changes)
    return adapted(clean(model) if dtype == torch.float64 else model, dtype).eval()


def there(batch):
    return {key: value.to(pretended.GPU) for key, value in batch.items()}


def here(result):
    assert result.device == pretended.GPU
    return result.held


def limit(dtype):
    return 1e-5 if dtype == torch.float32 else 1e-12


def test_two_devices_are_an_error_and_waits_are_written_down():
    x, index = torch.randn(4, 3), torch.tensor([1, 2])
    with pretended.device() as device:
        on = x.to(pretended.GPU)
        for call in (lambda: on[index], lambda: on + x, lambda: on * torch.tensor(2.0)):
            with pytest.raises(pretended.Mixed):
                call()
        assert torch.equal(here(on[index.to(pretended.GPU, non_blocking=True)] @ on.t()),
                           x[index] @ x.t())  # fmt: skip
        assert len(device.waits) == 1  # x's way there
        float(on.sum()), on[on > 0], on.cpu()
        assert [each.split()[0] for each in device.waits[1:]] == [
            "_local_scalar_dense", "index", "_to_copy",
        ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_cpu_and_waits_once(few, passed, dtype):
    model, batch = model_of(dtype=dtype), batch_of(3, 7)
    vectors = torch.randn(2, Engine(model).d, dtype=dtype)

    def calls(engine, batch):
        yield lambda: engine.sample_grads(*FACE, batch)
        yield lambda: engine.hvp(*FACE, batch, vectors)
        yield lambda: engine.ggn_vp(*FACE, batch, vectors)

    wanted = [call() for call in calls(Engine(model), batch)]
    with pretended.device() as device, emulation.poisoned():
        engine = Engine(model.to(pretended.GPU))
        batch = there(batch)
        engine.sample_grads(*FACE, batch)
        assert engine.report().fused_layers == 2
        assert device.ran == {*DECODER, "sample_grads"}
        for call, expected in zip(calls(engine, batch), wanted, strict=True):
            passed.clear()
            device.waits.clear()
            assert relative(here(call()), expected) <= limit(dtype)
            assert passed == [("cuda", False), ("cuda", True)]  # the last one cut
            inside = [
                each for each in device.waits if not each.split(" in ")[1].startswith(OUTSIDE)
            ]
            assert inside == ["_to_copy cuda to cpu in packed.py:_read"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_err_as_plain_ones_do(few, dtype):
    """At most twice as much, over a few models: the engine's pass there, PyTorch's own here."""
    ours = plain = 0.0
    for seed in range(3):
        torch.manual_seed(seed)
        model = adapted(llama(attention_dropout=0.0), dtype, lora_dropout=0.0).eval()
        for p in lora_parameters(model):
            p.data = p.data.float()
        batch = batch_of(3, 7, seed)
        truth = plain_grads(copy.deepcopy(model).double(), batch)
        plain += relative(plain_grads(model, batch), truth) ** 2
        with pretended.device(), emulation.poisoned():
            engine = Engine(model.to(pretended.GPU))
            ours += relative(here(engine.sample_grads(*FACE, there(batch))), truth) ** 2
        report = engine.report()
        assert (report.fused_layers, report.dtype) == (2, str(dtype).removeprefix("torch."))
    assert ours**0.5 <= 2 * plain**0.5


def test_the_probe_finds_a_kernel_wrong_in_16_bits_alone(few, monkeypatch):
    """Of no number but those that are not float32."""
    kernel = pretended.Device._kernel

    def found(self, func):
        good = kernel(self, func)

        def run(*args):
            result = good(*args)
            return 2 * result if result.dtype == torch.bfloat16 else result

        run._schema = func._schema
        return run if func._schema.name == "fudlr_decoder::swiglu_backward" else good

    torch.manual_seed(0)
    monkeypatch.setattr(pretended.Device, "_kernel", found)
    with pretended.device():
        engine = Engine(adapted(llama(), torch.bfloat16).eval().to(pretended.GPU))
        stack = decoder.find(engine.model, engine._layout)
    assert (stack.layers, "in torch.bfloat16 gave other numbers" in stack.why_not) == ([], True)


def test_samples_in_parts(few, monkeypatch):
    """Not what a GPU is given, but the same code: as views of tensors there."""
    model, batch = model_of(), batch_of(2, 5)
    vectors = torch.randn(2, Engine(model).d)
    expected = Engine(model).hvp(*FACE, batch, vectors)
    monkeypatch.setattr(decoder_jvp, "_parts", lambda runs, k: (slice(i, i + 1) for i in range(2)))
    with pretended.device():
        engine = Engine(model.to(pretended.GPU))
        assert relative(here(engine.hvp(*FACE, there(batch), vectors)), expected) <= 1e-5


def logits(model, batch):
    return model(**batch, use_cache=False).logits


def test_every_position_and_no_padding(few, passed):
    model, batch = model_of(), {"input_ids": batch_of(3)["input_ids"]}
    cotangents = torch.randn(1, *logits(model, batch).shape)
    expected = Engine(model).vjp(logits, batch, cotangents)
    with pretended.device(), torch.device(pretended.GPU):  # as torch.set_default_device does
        engine = Engine(model.to(pretended.GPU))
        got = here(engine.vjp(logits, there(batch), cotangents.to(pretended.GPU)))
    assert relative(got, expected) <= 1e-5
    assert ("cuda", False) in passed


def test_without_kernels_the_model_runs_its_own_code(passed, monkeypatch):
    monkeypatch.setattr(decoder._C, "devices", lambda: ["cpu"])
    model, batch = model_of(), batch_of(3)
    expected = Engine(model).sample_grads(*FACE, batch)
    passed.clear()
    with pretended.device():
        engine = Engine(model.to(pretended.GPU))
        assert relative(here(engine.sample_grads(*FACE, there(batch))), expected) <= 1e-5
    assert not passed


@pytest.fixture(scope="module")
def one_layer():
    """An engine over one layer on the GPU that is none."""
    with pretended.device():
        return Engine(model_of(num_hidden_layers=1).to(pretended.GPU))


def broken(kernel, op, change):
    """The emulated kernels, and after `op` what `change` does to its results."""

    def found(self, func):
        good = kernel(self, func)

        def run(*args):
            result = good(*args)
            change(args[0] if result is None else result)
            return result

        run._schema = func._schema
        return run if func._schema.name == f"fudlr_decoder::{op}" else good

    return found


def slightly_wrong(result):
    """One column, by a tenth."""
    tensors = result if isinstance(result, tuple) else (result,)
    for tensor in tensors:
        tensor.view(len(tensor), -1)[:, 0] *= 1.1


def refused(result):
    raise RuntimeError("the device says invalid argument")


def test_the_probe_finds_the_kernels_right(one_layer):
    with pretended.device() as device, emulation.poisoned():
        assert len(decoder.find(one_layer.model, one_layer._layout).layers) == 1
    assert device.ran == DECODER


@pytest.mark.parametrize(
    ("op", "change"), [*((op, slightly_wrong) for op in sorted(DECODER)), ("swiglu", refused)]
)
def test_the_probe_finds_a_kernel_wrong(few, monkeypatch, one_layer, op, change):
    kernels = broken(pretended.Device._kernel, op, change)
    monkeypatch.setattr(pretended.Device, "_kernel", kernels)
    with pretended.device():
        assert decoder.find(one_layer.model, one_layer._layout).layers == []


@pytest.mark.parametrize("name", ["older", "newer"])
def test_the_probe_computes_whole_products(few, monkeypatch, one_layer, name):
    """Torch has two names for what a caller allows, and an error for whoever reads the other."""
    said = []
    matmul, own = torch.backends.cuda.matmul, probe._own_derivatives

    def noted(*given):
        said.append((matmul.fp32_precision, matmul.allow_tf32))
        return own(*given)

    monkeypatch.setattr(probe, "_own_derivatives", noted)
    before, newer = torch.get_float32_matmul_precision(), matmul.fp32_precision
    try:
        if name == "older":
            torch.set_float32_matmul_precision("high")
        else:
            matmul.fp32_precision = "tf32"
        with pretended.device():
            assert decoder.find(one_layer.model, one_layer._layout).layers
        assert said == [("ieee", False)] * 2
        assert matmul.fp32_precision == "tf32"
        assert name == "newer" or torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
        matmul.fp32_precision = newer
