"""Curvature products against dense float64 matrices of a tiny model."""

import pytest
import torch
from engine_models import adapted, batch_of, clean, llama, plain_grads, qwen2, relative
from torch.func import functional_call, hessian, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from fudlr_ext import Engine, EngineError, label_logits, label_loss

FACE = (label_logits, label_loss)


@pytest.fixture(scope="module", params=[llama, qwen2])
def tiny(request):
    """A model small enough for its whole Hessian, and its per-sample losses as a function of θ."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    base = clean(request.param(**sizes, num_key_value_heads=1, attn_implementation="sdpa"))
    model = adapted(base, torch.float64, r=1, target_modules=["q_proj", "v_proj", "up_proj"]).eval()
    return model, Engine(model), batch_of(n=4, t=6)


def dense(model, engine, batch):
    """Return outputs(θ), losses(θ) and θ through torch.func, without the engine's passes."""

    def outputs(theta):
        matrices = engine.unflatten(theta)
        named = {name.replace(".weight", ".default.weight"): m for name, m in matrices.items()}
        with sdpa_kernel(SDPBackend.MATH):  # eager attention rounds to float32 within
            return functional_call(
                Logits(model), {f"model.{k}": v for k, v in named.items()}, (batch,)
            )

    return outputs, lambda theta: label_loss(outputs(theta), batch), engine.theta()


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return label_logits(self.model, batch)


@pytest.fixture(scope="module")
def matrices(tiny):
    outputs, losses, theta = dense(*tiny)
    batch = tiny[2]
    jacobian = jacrev(outputs)(theta).flatten(0, -2)
    at = outputs(theta)
    curved = hessian(lambda o: label_loss(o.view_as(at), batch).mean())(at.detach().flatten())
    grads = jacrev(losses)(theta)
    return {
        "hvp": hessian(lambda t: losses(t).mean())(theta),
        "ggn_vp": jacobian.T @ curved @ jacobian,
        "fisher_vp": grads.T @ grads / len(grads),
    }


@pytest.mark.parametrize("product", ["hvp", "ggn_vp", "fisher_vp"])
def test_equals_the_dense_matrix(tiny, matrices, product):
    _, engine, batch = tiny
    vectors = torch.randn(4, engine.d, dtype=torch.float64)
    got = getattr(engine, product)(*FACE, batch, vectors)
    assert relative(got, vectors @ matrices[product]) <= 1e-10


@pytest.mark.parametrize("product", ["hvp", "ggn_vp", "fisher_vp"])
def test_is_symmetric(tiny, product):
    _, engine, batch = tiny
    whole = getattr(engine, product)(*FACE, batch, torch.eye(engine.d, dtype=torch.float64))
    assert relative(whole, whole.T) <= 1e-10
    if product != "hvp":
        assert torch.linalg.eigvalsh(whole).min() >= -1e-10


@pytest.mark.parametrize("product", ["hvp", "ggn_vp", "fisher_vp"])
def test_no_vectors_give_no_products(tiny, product):
    _, engine, batch = tiny
    got = getattr(engine, product)(*FACE, batch, torch.zeros(0, engine.d, dtype=torch.float64))
    assert got.shape == (0, engine.d)
    none = torch.zeros(0, engine.d, dtype=torch.float64)
    assert engine.ggn_form(*FACE, batch, none).shape == (0,)


def test_fisher_weighs_samples(tiny):
    model, engine, batch = tiny
    grads = plain_grads(model, batch)
    vectors = torch.randn(2, engine.d, dtype=torch.float64)
    weights = torch.randn(len(grads), dtype=torch.float64)
    expected = vectors @ grads.T @ torch.diag(weights) @ grads / len(grads)
    assert relative(engine.fisher_vp(*FACE, batch, vectors, weights), expected) <= 1e-10
    for wrong in (weights[:-1], weights[None]):
        with pytest.raises(EngineError, match="weights"):
            engine.fisher_vp(*FACE, batch, vectors, wrong)


def test_hessian_predicts_the_gradient(tiny):
    """∇L(θ + εv) − ∇L(θ − εv) = 2ε H v, whatever made H v."""
    _, engine, batch = tiny
    theta, weights = engine.theta(), torch.full((4,), 0.25, dtype=torch.float64)
    vector = torch.randn(1, engine.d, dtype=torch.float64)
    product = engine.hvp(*FACE, batch, vector)[0]
    sides = []
    for sign in (1, -1):
        engine.load(theta + sign * 1e-5 * vector[0])
        sides.append(engine.grad_sum(*FACE, batch, weights))
    engine.load(theta)
    assert relative((sides[0] - sides[1]) / 2e-5, product) <= 1e-6


def test_outputs_may_be_a_tuple(tiny, matrices):
    _, engine, batch = tiny
    vectors = torch.randn(2, engine.d, dtype=torch.float64)

    def forward(model, batch):
        logits = label_logits(model, batch)
        return logits[..., :7], batch["labels"], logits[..., 7:]

    def loss(outputs, batch):
        return label_loss(torch.cat([outputs[0], outputs[2]], -1), batch)

    expected = vectors @ matrices["ggn_vp"]
    assert relative(engine.ggn_vp(forward, loss, batch, vectors), expected) <= 1e-10
    form = engine.ggn_form(forward, loss, batch, vectors)
    assert relative(form, (expected * vectors).sum(1)) <= 1e-10


def test_linear_loss_has_no_gauss_newton_part(tiny):
    _, engine, batch = tiny
    vectors = torch.randn(2, engine.d, dtype=torch.float64)
    face = (label_logits, lambda logits, batch: logits.mean((1, 2)), batch, vectors)
    got, form = engine.ggn_vp(*face), engine.ggn_form(*face)
    assert (got.shape, form.shape) == (vectors.shape, (2,))
    assert not got.any() | form.any()


@pytest.mark.numerics
def test_float32_and_fused_attention():
    torch.manual_seed(0)
    model = adapted(llama(attn_implementation="sdpa"))
    engine, batch = Engine(model), batch_of()
    exact = Engine(adapted(clean(llama()), torch.float64))
    source = {k: v.double() for k, v in model.state_dict().items()}
    exact.model.load_state_dict(source)
    vectors = torch.randn(2, engine.d)
    for product in ("hvp", "ggn_vp", "fisher_vp"):
        got = getattr(engine, product)(*FACE, batch, vectors)
        assert got.dtype == torch.float32
        assert relative(got, getattr(exact, product)(*FACE, batch, vectors.double())) <= 1e-4
