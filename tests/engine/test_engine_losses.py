"""Losses that look at other samples or at chance are refused, on every path; one row is checked."""

import functools
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from engine_models import batch_of, check, fused, tiny

from fudlr_ext import Engine, EngineError, label_logits, label_loss, passes

FACE = (label_logits, label_loss)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@contextmanager
def wrong_reducer(monkeypatch):
    from fudlr_ext import collect

    own = collect.Collector._add

    def slightly(self, uses, offsets):
        own(self, [(block, left * 1.01, right) for block, left, right in uses], offsets)

    with monkeypatch.context() as patched:
        patched.setattr(collect.Collector, "_add", slightly)
        yield


def test_one_row_is_checked(monkeypatch):
    model, batch = tiny(), batch_of()
    engine = Engine(model, check=True)
    with (
        wrong_reducer(monkeypatch),
        pytest.raises(EngineError, match="compared with plain autograd"),
    ):
        engine.sample_grads(*FACE, batch)
    engine = Engine(model, check=True)
    engine.hvp(*FACE, batch, torch.zeros(1, engine.d))
    with wrong_reducer(monkeypatch):
        engine.sample_grads(*FACE, batch)  # once


def contrastive(outputs, batch):
    return outputs.mean((1, 2)) * outputs.sum()


def balanced(outputs, batch):
    """As a router's loss, which is one number for the whole batch."""
    return label_loss(outputs, batch) + outputs.softmax(-1).mean((0, 1)).square().sum()


@pytest.mark.parametrize("loss", [contrastive, balanced])
@pytest.mark.parametrize("base", [{}, {"hidden_act": "relu"}])
def test_losses_that_look_at_other_samples(loss, base):
    """Fused or not, with the engine's first loss or a later one."""
    model, batch = tiny(**base), batch_of()
    for engine in (Engine(model), check(model, batch, curved=False)):
        for _ in range(2):
            with pytest.raises(EngineError, match="losses that look at other samples"):
                engine.sample_grads(label_logits, loss, batch)
        assert fused(check(model, batch, engine=engine, curved=False)) == (not base)


def closed_over(loss):
    return lambda outputs, batch: 2.0 * loss(outputs, batch)


@pytest.mark.parametrize("wrap", [closed_over, functools.partial])
def test_losses_are_proven_once_each(wrap):
    model, batch = tiny(), batch_of()
    engine = Engine(model)
    losses = (label_loss, lambda outputs, batch: outputs.square().mean((1, 2)))
    with mock.patch.object(passes, "prove_rows", wraps=passes.prove_rows) as prove:
        for _ in range(3):
            for loss in losses:
                engine.sample_grads(label_logits, wrap(loss), batch)
    assert prove.call_count == 2
    with pytest.raises(EngineError, match="losses that look at other samples"):
        engine.sample_grads(label_logits, wrap(contrastive), batch)


def test_a_model_that_mixes_samples_above_its_layers():
    model, batch = tiny(), batch_of()
    norm = model.base_model.model.model.norm
    norm.register_forward_hook(lambda m, a, out: out + out.mean(0, keepdim=True))
    with pytest.raises(EngineError, match="losses that look at other samples"):
        Engine(model).sample_grads(*FACE, batch)


def test_random_losses_are_found_by_the_check():
    def dropped(outputs, batch):
        return label_loss(outputs + torch.randn_like(outputs), batch)

    with pytest.raises(EngineError, match="whether the loss is random"):
        Engine(tiny(), check=True).sample_grads(label_logits, dropped, batch_of())
