"""The engine's first-order numbers against one backward pass a sample, and against opacus."""

import copy

import pytest
import torch
from engine_models import (
    adapted,
    batch_of,
    llama,
    plain_grads,
    qwen2,
    relative,
)
from opacus import GradSampleModule

from fudlr_ext import Engine, label_logits, label_loss, label_targets
from fudlr_ext.reducers import Dots, Rows

pytestmark = pytest.mark.numerics

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
FACE = (label_logits, label_loss)

ADAPTERS = {
    "all linears": {},
    "query and value": {"target_modules": ["q_proj", "v_proj"]},
    "last layer": {"target_modules": ["down_proj"], "layers_to_transform": [1]},
    "rslora": {"use_rslora": True, "r": 16, "lora_alpha": 3},
    "output matrix": {"target_modules": ["q_proj", "lm_head"]},
    "ranks": {"rank_pattern": {"q_proj": 1, "down_proj": 40}},
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("base", "dtype"), [(llama, torch.float64), (qwen2, torch.float32)], ids=["llama", "qwen2"]
)
@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
def test_sample_grads(base, options, dtype):
    model = adapted(base(), dtype, **options)
    batch = batch_of()
    got = Engine(model).sample_grads(*FACE, batch)
    assert got.dtype == dtype
    assert relative(got, plain_grads(model, batch)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("base", [llama, qwen2])
def test_opacus(base):
    model = adapted(base(attention_dropout=0.0), lora_dropout=0.0)
    batch = batch_of()
    got = Engine(model).sample_grads(*FACE, batch)
    theirs = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    logits = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = []
    for row, labels in zip(logits, batch["labels"], strict=True):
        used = labels[1:] != -100
        losses.append(torch.nn.functional.cross_entropy(row[:-1][used], labels[1:][used]))
    torch.stack(losses).sum().backward()
    rows = [p.grad_sample.flatten(1) for p in theirs.parameters() if p.requires_grad]
    assert relative(got, torch.cat(rows, 1)) <= 1e-5


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_products_and_sums(dtype):
    model = adapted(llama(), dtype)
    engine, batch = Engine(model), batch_of()
    grads = plain_grads(model, batch)
    vectors = torch.randn(7, engine.d, dtype=dtype)
    weights = torch.randn(3, 5, dtype=dtype)
    tolerance = TOLERANCE[dtype]
    assert relative(engine.sample_dots(*FACE, batch, vectors), grads @ vectors.T) <= tolerance
    assert relative(engine.grad_sum(*FACE, batch, weights), weights @ grads) <= tolerance
    one = engine.grad_sum(*FACE, batch, weights[0])
    assert one.shape == (engine.d,)
    assert relative(one, weights[0] @ grads) <= tolerance


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_vjp(dtype):
    model = adapted(llama(), dtype)
    engine, batch = Engine(model), batch_of()

    def scores(model, batch):
        logits = label_logits(model, batch)
        return logits[:, 0], batch["labels"], logits[:, 0].square().mean(1)

    first, _, last = scores(model, batch)
    cotangents = (
        torch.randn(3, *first.shape, dtype=dtype),
        torch.zeros(3, *batch["labels"].shape),
        torch.randn(3, *last.shape, dtype=dtype),
    )
    got = engine.vjp(scores, batch, cotangents)
    for j in range(3):

        def weighted(outputs, one, j=j):
            i = next(i for i in range(5) if torch.equal(batch["input_ids"][i], one["input_ids"][0]))
            first, _, last = outputs
            return (first * cotangents[0][j, i]).sum(1) + last * cotangents[2][j, i]

        expected = plain_grads(model, batch, forward=scores, loss=weighted).sum(0)
        assert relative(got[j], expected) <= TOLERANCE[dtype]


def test_an_output_without_cotangents_takes_no_part_in_a_pass():
    """Two outputs with graphs of their own, each wanted by one cotangent alone: two ways back."""
    model = adapted(llama())
    engine, batch, passed = Engine(model), batch_of(), []

    def two(model, batch):
        outputs = label_logits(model, batch).square().sum(2), label_logits(model, batch)
        for i, output in enumerate(outputs):
            output.register_hook(lambda gradient, i=i: passed.append(i))
        return outputs

    outputs = engine.deferred_vjp(two, batch).outputs
    one, other, both, none = torch.eye(2)[0], torch.eye(2)[1], torch.ones(2), torch.zeros(2)

    def cotangents(*rows):
        return tuple(torch.stack([row[i] * outputs[i] for row in rows]) for i in range(2))

    apart = engine.vjp(two, batch, cotangents(one, other))
    assert passed == [0, 1]
    passed.clear()
    together = engine.vjp(two, batch, cotangents(none, both))
    assert sorted(passed) == [0, 1]
    assert together[0].count_nonzero() == 0
    assert relative(together[1], apart.sum(0)) <= 1e-6
    assert apart[0].norm() > 0


def test_a_graph_knows_what_its_fused_layers_hold():
    """Hooks on saved tensors see none of it: kept graphs of a large model would fill the memory."""
    engine = Engine(adapted(llama()))
    few, many = (engine.deferred_vjp(label_logits, batch_of(n=n, t=40)).held for n in (2, 40))
    assert few > sum(p.numel() * 4 for layer in engine._layout.layers for p in (layer.base.weight,))
    hidden, layers = 32, 2
    assert many - few > 38 * 8 * layers * 10 * hidden * 4, "ten vectors a position and layer"


def test_a_layer_that_is_used_twice():
    model = adapted(llama())
    layers = model.base_model.model.model.layers
    layers[1] = layers[0]
    engine, batch = Engine(model), batch_of()
    assert len(engine.names) == 14
    expected = plain_grads(model, batch)
    assert relative(engine.sample_grads(*FACE, batch), expected) <= 1e-5
    vectors, weights = torch.randn(2, engine.d), torch.randn(5)
    assert relative(engine.sample_dots(*FACE, batch, vectors), expected @ vectors.T) <= 1e-5
    assert relative(engine.grad_sum(*FACE, batch, weights), weights @ expected) <= 1e-5


def test_several_sinks_share_a_pass():
    model = adapted(llama())
    engine, batch = Engine(model), batch_of()
    rows, dots = Rows(), Dots(torch.randn(2, engine.d))
    passes = []

    def forward(model, batch):
        passes.append(batch)
        return label_logits(model, batch)

    losses = engine.reduce(forward, label_loss, batch, [rows, dots])
    assert len(passes) == 1
    assert not losses.requires_grad
    torch.testing.assert_close(losses, label_loss(label_logits(model.eval(), batch), batch))
    assert relative(rows.result(), plain_grads(model, batch)) <= 1e-5
    assert relative(dots.result(), rows.result() @ dots._vectors.T) <= 1e-5


def test_gradient_checkpointing():
    model = adapted(llama(attention_dropout=0.0), lora_dropout=0.0)
    batch = batch_of()
    expected = plain_grads(model, batch)
    model.gradient_checkpointing_enable()
    model.train()
    assert relative(Engine(model).sample_grads(*FACE, batch), expected) <= 1e-5


def test_second_adapter():
    model = adapted(llama(), target_modules=["q_proj", "up_proj"])
    from peft import LoraConfig

    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.set_adapter("other")
    torch.nn.init.normal_(
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["other"].weight
    )
    engine, batch = Engine(model, adapter="other"), batch_of()
    assert relative(engine.sample_grads(*FACE, batch), plain_grads(model, batch, "other")) <= 1e-5
    assert all("lora_A.weight" in name or "lora_B.weight" in name for name in engine.names)


def test_gradients_switched_off_by_the_caller():
    model = adapted(llama())
    engine, batch = Engine(model), batch_of()
    expected = engine.sample_grads(*FACE, batch)
    with torch.no_grad():
        assert torch.equal(engine.sample_grads(*FACE, batch), expected)
    with torch.inference_mode():
        assert torch.equal(engine.sample_grads(*FACE, batch), expected)


def test_label_logits_are_the_logits_at_the_labels():
    model = adapted(llama()).eval()
    batch = batch_of()
    logits, targets = label_logits(model, batch), label_targets(batch)
    full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for i in range(5):
        wanted = batch["labels"][i, 1:] != -100
        used = targets[i] != -100
        assert torch.equal(targets[i][used], batch["labels"][i, 1:][wanted])
        torch.testing.assert_close(logits[i][used], full[i, :-1][wanted])
        mean = torch.nn.functional.cross_entropy(full[i, :-1][wanted], targets[i][used])
        torch.testing.assert_close(label_loss(logits, batch)[i], mean)
    assert targets.shape == (5, 4)
