"""Dropout, and a model wrapped for distributed training: rows are what the step differentiated."""

from __future__ import annotations

import io
from contextlib import nullcontext

import pytest
import torch
from fudlr.gradients.store import Recorder, Store
from fudlr.gradients.store.commands import store_info
from fudlr.gradients.store.manifest import read_manifest
from fudlr.influence.unroll import Unrolled
from recorder_cases import (
    EXACT,
    N,
    adapted_llama,
    every_direction,
    exact_rows,
    losses,
    samples,
    take,
)
from rich.console import Console
from test_recorder import IDS, close
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fudlr_ext import Engine

DROPPED = {"dropout": 0.2, "attention_dropout": 0.1}


def rows_under_the_same_masks(model, batch, state):
    """∇ℓ_i [n, d] by autograd, one sample at a time, the masks drawn again from `state`."""
    torch.set_rng_state(state)
    parameters = Engine(model).parameters()
    found = losses(model, batch)
    rows = [torch.autograd.grad(each, parameters, retain_graph=True) for each in found]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def test_rows_are_gradients_under_the_masks_of_their_step(tmp_path):
    model, batch = adapted_llama(**DROPPED), samples()
    projection, states = every_direction(model), {}
    options = {"projection": projection, "config": EXACT}
    with Recorder(model, tmp_path / "s", data="samples", **options) as recorder:
        for index in torch.arange(N).split(8):
            states[int(index[0])] = torch.get_rng_state()
            with recorder.batch(IDS[index]):
                losses(model, take(batch, index)).mean().backward()
            model.zero_grad()
    found = Store.open(tmp_path / "s").read(IDS)
    for index in torch.arange(N).split(8):
        exact = rows_under_the_same_masks(model, take(batch, index), states[int(index[0])])
        torch.testing.assert_close(found[index], projection.project(exact), **close(exact))
    # Not the gradients without masks, by far.
    plain = projection.project(exact_rows(model, batch))
    assert float((found - plain).norm()) > 0.1 * float(plain.norm())


def trained(folder, *, record):
    """Two epochs with dropout; the adapter it leaves."""
    model, batch = adapted_llama(**DROPPED), samples()
    optimiser = torch.optim.Adam(Engine(model).parameters(), lr=1e-2)
    options = {"optimiser": optimiser, "config": EXACT.model_copy(update={"epochs": "all"})}
    riding = Recorder(model, folder / "s", data="samples", **options) if record else nullcontext()
    torch.manual_seed(5)
    with riding as recorder:
        for index in 2 * torch.arange(N).split(8):
            with recorder.batch(IDS[index]) if record else nullcontext():
                losses(model, take(batch, index)).mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    return Engine(model)


def test_a_training_with_dropout_is_the_same_and_can_be_unrolled(tmp_path):
    recorded, alone = trained(tmp_path, record=True), trained(tmp_path, record=False)
    assert torch.equal(recorded.theta(), alone.theta())
    store = Store.open(tmp_path / "s")
    unrolled = Unrolled.of(store, recorded.shapes, order=IDS, theta=recorded.theta())
    again = unrolled.update(torch.zeros(N))
    assert torch.allclose(again, recorded.theta(), rtol=1e-4, atol=1e-6)


def test_the_store_says_what_was_dropped_out(tmp_path):
    trained(tmp_path, record=True)
    dropout = read_manifest(tmp_path / "s").dropout
    assert dropout == {"lora_dropout": 0.2, "self_attn": 0.1}
    console = Console(file=io.StringIO(), width=200)
    store_info(tmp_path / "s", console)
    assert "lora_dropout 0.2, self_attn 0.1: rows are" in console.file.getvalue()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_wrapped_model_is_recorded_as_the_model_within(tmp_path, one_process, accumulated):
    batch, thetas = samples(), []
    for wrap in (False, True):
        model = adapted_llama(dropout=0.1)
        outer = DistributedDataParallel(model) if wrap else model
        optimiser = torch.optim.AdamW(Engine(model).parameters(), lr=1e-2)
        config = EXACT.model_copy(update={"epochs": "all"})
        options = {"optimiser": optimiser, "config": config, "projection": every_direction(model)}
        torch.manual_seed(5)
        with Recorder(outer, tmp_path / f"{wrap}", data="samples", **options) as recorder:
            for at, index in enumerate(torch.arange(N).split(4)):
                ends = at % accumulated == accumulated - 1
                with (
                    recorder.batch(IDS[index], divisor=4 * accumulated),
                    nullcontext() if ends or not wrap else outer.no_sync(),
                ):
                    part = take(batch, index)
                    logits, labels = outer(**part).logits[:, :-1], part["labels"][:, 1:]
                    token = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
                    each = token.sum(1) / (labels != -100).sum(1)
                    (each.sum() / (4 * accumulated)).backward()
                if ends:
                    optimiser.step()
                    optimiser.zero_grad()
        thetas.append(Engine(model).theta())
    assert torch.equal(*thetas)
    alone, wrapped = (Store.open(tmp_path / f"{wrap}") for wrap in (False, True))
    torch.testing.assert_close(wrapped.read(IDS), alone.read(IDS), rtol=0, atol=0)
    assert wrapped.binding == alone.binding
