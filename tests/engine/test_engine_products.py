"""Products by oneDNN beside float64's, and the engine's passes that are made of them."""

import pytest
import torch
from engine_models import adapted, batch_of, clean, llama, plain_grads, qwen2, relative

from fudlr_ext import _C, Engine, label_logits, label_loss, products

FACE = (label_logits, label_loss)
pytestmark = pytest.mark.numerics


@pytest.fixture
def every_size(monkeypatch):
    monkeypatch.setattr(products, "LEAST", 1)


def _dense(rows, columns):
    return torch.randn(rows, columns)


def _with_gaps(rows, columns):
    return torch.randn(rows, columns + 3)[:, 1:-2]


def _turned(rows, columns):
    return torch.randn(columns, rows).t()


@pytest.mark.parametrize("rows", [_dense, _with_gaps])
@pytest.mark.parametrize("weights", [_dense, _with_gaps, _turned])
def test_products_are_those_of_float64(every_size, rows, weights):
    torch.manual_seed(0)
    x, weight = rows(7, 20), weights(9, 20)
    assert products._served(x, weight) == (
        _C.isa() == "avx512" and torch.backends.mkldnn.is_available()
    )
    exact = x.double() @ weight.double().t()
    assert relative(products.matmul(x, weight).double(), exact) <= 1e-6
    to = torch.randn(7, 9)
    expected = to.double() + exact
    assert relative(products.added(to, x, weight).double(), expected) <= 1e-6
    assert relative(to.double(), expected) <= 1e-6  # in place


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(4, 3), torch.ones(2, 3)),  # too small
        (torch.ones(4, 3).double(), torch.ones(2, 3).double()),
        (torch.ones(0, 3), torch.ones(2, 3)),
    ],
)
def test_others_are_torchs(x, weight):
    assert not products._served(x, weight)
    assert torch.equal(products.matmul(x, weight), x @ weight.t())


def test_torch_may_be_told_not_to_use_it(every_size):
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products._served(torch.ones(4, 3), torch.ones(2, 3))


@pytest.mark.parametrize("base", [llama, qwen2])  # without and with biases
def test_passes_of_these_products(every_size, monkeypatch, base):
    torch.manual_seed(0)
    model, batch = adapted(clean(base()), torch.float32), batch_of()
    engine = Engine(model)
    rows = engine.sample_grads(*FACE, batch)
    assert engine.report().fused_layers  # the probe lets no wrong product pass
    assert relative(rows, plain_grads(model, batch)) <= 1e-5
    bent = [engine.hvp(*FACE, batch, rows[:2]), engine.ggn_vp(*FACE, batch, rows[:2])]
    monkeypatch.setattr(products, "LEAST", 2**60)
    for got, way in zip(bent, (engine.hvp, engine.ggn_vp), strict=True):
        assert relative(got, way(*FACE, batch, rows[:2])) <= 1e-5
