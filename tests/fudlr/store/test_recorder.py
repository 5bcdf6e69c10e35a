"""Rows from a training's own backward passes: their scale, and what must not change or be lost."""

from __future__ import annotations

import copy

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.store import Recorder, Store, StoreError
from fudlr.gradients.store.writer import PROJECTION
from recorder_cases import EXACT, N, adapted_llama, exact_rows, losses, samples, take

from fudlr_ext.errors import EngineError, NoGradientError

IDS = torch.arange(N) * 10 + 3
# The engine sums the same terms in another order.


def close(exact):
    """Float32 rounding beside the largest entry: the engine's fused layers add up in another order
    than the model's own; 1e-5 of it was measured."""
    return {"rtol": 0.0, "atol": 2e-5 * float(exact.abs().max())}


def record(folder, model, step, config=EXACT, **options):
    """Record all samples in batches of 8, the last one first, without changing the adapter."""
    batch = samples()
    with Recorder(model, folder, data="samples", config=config, **options) as recorder:
        for index in reversed(torch.arange(N).split(8)):
            step(recorder, index, take(batch, index))
            model.zero_grad()
    return Store.open(folder)


def plain(recorder, index, batch, model):
    with recorder.batch(IDS[index]) as here:
        found = losses(model, batch)
        here.losses = found.detach()
        found.mean().backward()


def check(store, model, batch=None):
    exact = exact_rows(model, samples())
    projection = store.projection()
    torch.testing.assert_close(store.read(IDS), projection.project(exact), **close(exact))
    facts = store.facts()
    torch.testing.assert_close(facts.mean_gradient, exact.mean(0), **close(exact))
    return facts


@pytest.mark.parametrize("matrices", ["B", "both"])
def test_a_row_is_the_samples_own_undivided_gradient(tmp_path, matrices):
    model = adapted_llama()
    config = EXACT.model_copy(update={"matrices": matrices})
    store = record(tmp_path / "s", model, lambda *a: plain(*a, model), config)
    facts = check(store, model)
    torch.testing.assert_close(facts.loss_of(IDS), losses(model.eval(), samples()).detach())
    share = store.projection().energy_kept(exact_rows(model, samples()))
    assert share == pytest.approx(1.0) if matrices == "both" else share < 0.9


def accumulated(recorder, index, batch, model):
    for part in torch.arange(8).split(2):
        with recorder.batch(IDS[index[part]], divisor=8):
            (losses(model, take(batch, part)).mean() / 4).backward()


def weighted(recorder, index, batch, model):
    weights = 1 + index.float() % 3
    with recorder.batch(IDS[index], divisor=5.0, weights=weights):
        ((weights * losses(model, batch)).sum() / 5).backward()


def token_mean(recorder, index, batch, model):
    # As transformers' models compute it: one mean over all the batch's label tokens.
    counts = (batch["labels"] != -100).sum(1)
    with recorder.batch(IDS[index], divisor=counts.sum() / counts):
        model(**batch).loss.backward()


def scaled(recorder, index, batch, model):
    with recorder.batch(IDS[index], divisor=1 / 512):
        (losses(model, batch).sum() * 512).backward()


@pytest.mark.parametrize(
    ("step", "per_sample"),
    [(accumulated, False), (weighted, True), (token_mean, True), (scaled, False)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_the_loss_was_divided_by(tmp_path, step, per_sample):
    model = adapted_llama()
    store = record(
        tmp_path / "s", model, lambda *a: step(*a, model), per_sample_divisors=per_sample
    )
    check(store, model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_neither_doubles_nor_loses_rows(tmp_path, reentrant):
    model = adapted_llama()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    store = record(tmp_path / "s", model, lambda *a: plain(*a, model))
    model.gradient_checkpointing_disable()
    check(store, model)


def trained(folder, steps=6):
    """Train, with or without a recorder on the last three steps."""
    model = adapted_llama()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = samples()
    recorder = folder and Recorder(model, folder, data="samples", config=RecordConfig())
    for step in range(steps):
        index = torch.arange(N).split(8)[step % 3]
        optimiser.zero_grad()
        if recorder and step >= 3:
            plain(recorder, index, take(batch, index), model)
        else:
            losses(model, take(batch, index)).mean().backward()
        optimiser.step()
    if recorder:
        recorder.finish()
    return model


def test_training_is_the_same_bit_for_bit_and_no_hook_stays(tmp_path):
    recorded, alone = trained(tmp_path / "s"), trained(None)
    for (name, left), right in zip(recorded.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert Store.open(tmp_path / "s").n == N
    assert not any(module._forward_hooks for module in recorded.modules())
    assert not any(p._backward_hooks for p in recorded.parameters())


def test_the_store_is_bound_to_the_adapter_that_the_epoch_left(tmp_path):
    from fudlr.gradients.store import fingerprint, model_fingerprint

    from fudlr_ext import Engine

    model = trained(tmp_path / "s")
    binding = Store.open(tmp_path / "s").spec.binding
    assert binding.adapter == fingerprint(Engine(model).theta())
    assert binding.model == model_fingerprint(model)
    assert not (tmp_path / "s.recording").exists()


def test_a_second_backward_is_refused(tmp_path):
    model = adapted_llama()

    def twice(recorder, index, batch):
        with recorder.batch(IDS[index]):
            loss = losses(model, batch).mean()
            loss.backward(retain_graph=True)
            loss.backward()

    with pytest.raises(EngineError, match="arrived twice"):
        record(tmp_path / "s", model, twice)


def test_a_batch_without_backward_is_refused(tmp_path):
    model = adapted_llama()

    def none(recorder, index, batch):
        with recorder.batch(IDS[index]):
            losses(model, batch)

    with pytest.raises(NoGradientError, match="14 never arrived"):
        record(tmp_path / "s", model, none)


def test_a_backward_after_its_batch_is_refused(tmp_path):
    model = adapted_llama()

    def late(recorder, index, batch):
        with recorder.batch(IDS[index]):
            loss = losses(model, batch).mean()
            losses(model, batch).mean().backward()
        loss.backward()

    with pytest.raises(EngineError, match="closed already"):
        record(tmp_path / "s", model, late)


def test_rows_that_are_not_samples_are_refused(tmp_path):
    model = adapted_llama()

    def packed(recorder, index, batch):
        with recorder.batch(IDS[index[:4]], divisor=8):
            losses(model, batch).mean().backward()

    with pytest.raises(EngineError, match="whose rows are not the samples"):
        record(tmp_path / "s", model, packed)


@pytest.mark.parametrize("shown", [0, 1], ids=["while fitting", "later"])
def test_a_sample_shown_twice_is_refused(tmp_path, shown):
    model, batch = adapted_llama(), samples()
    index = torch.arange(8)
    config = EXACT.model_copy(update={"fit_samples": 1 if shown else 100})
    recorder = Recorder(model, tmp_path / "s", data="samples", config=config)
    plain(recorder, index, take(batch, index), model)

    def again():
        plain(recorder, index, take(batch, index), model)
        recorder.finish()

    with pytest.raises(StoreError, match="already"):
        again()
    recorder.close()


def test_dropout_is_refused_and_can_be_accepted(tmp_path):
    model = adapted_llama(dropout=0.2)
    with pytest.raises(UsageError, match=r"dropout of .*lora_dropout"):
        record(tmp_path / "s", model, lambda *a: plain(*a, model))
    store = record(tmp_path / "s", model, lambda *a: plain(*a, model), allow_dropout=True)
    assert store.n == N
    attention = adapted_llama(attention_dropout=0.1)
    with pytest.raises(UsageError, match=r"dropout of .*self_attn"):
        record(tmp_path / "t", attention, lambda *a: plain(*a, attention))


@pytest.mark.parametrize("weights", [torch.tensor([1.0] * 7 + [0.0]), torch.ones(3)])
def test_weights_that_leave_no_gradient_are_refused(tmp_path, weights):
    recorder = Recorder(adapted_llama(), tmp_path / "s", data="samples", per_sample_divisors=True)
    with (
        pytest.raises(UsageError, match="above 0"),
        recorder.batch(IDS[:8], weights=weights),
    ):
        pass


def test_nothing_recorded_is_an_error(tmp_path):
    with (
        pytest.raises(StoreError, match="no batch was recorded"),
        Recorder(adapted_llama(), tmp_path / "s", data="samples"),
    ):
        pass


def test_a_recording_that_stopped_goes_on_with_its_projection(tmp_path):
    model = adapted_llama()
    whole = record(tmp_path / "whole", model, lambda *a: plain(*a, model))
    parts = list(reversed(torch.arange(N).split(8)))

    def until(stop):
        recorder = Recorder(model, tmp_path / "s", data="samples", config=EXACT)
        try:
            for index in parts[:stop]:
                plain(recorder, index, take(samples(), index), model)
                model.zero_grad()
            if stop < 3:
                raise KeyboardInterrupt
            return recorder.finish()
        except KeyboardInterrupt:
            return recorder.close()

    until(1)
    saved = (tmp_path / "s.recording" / PROJECTION).read_bytes()
    until(2)
    assert (tmp_path / "s.recording" / PROJECTION).read_bytes() == saved
    store = until(3)
    assert store.content_sha256() == whole.content_sha256()
    left, right = store.facts(), whole.facts()
    assert torch.equal(left.gradient_sum, right.gradient_sum)
    assert torch.equal(left.loss_of(IDS), right.loss_of(IDS))


def test_what_was_flushed_is_on_disk_before_anything_is_closed(tmp_path):
    model, index = adapted_llama(), torch.arange(8)
    recorder = Recorder(model, tmp_path / "s", data="samples", config=EXACT)
    plain(recorder, index, take(samples(), index), model)
    folder = tmp_path / "s.recording"
    assert not list(folder.glob("rows-*"))
    recorder.flush()
    found = Store.open(folder)
    assert torch.equal(found.ids.sort().values, IDS[index])
    assert torch.equal(found.facts().ids.sort().values, IDS[index])
    recorder.close()


def test_a_recording_of_another_course_is_not_gone_on_with(tmp_path):
    model = adapted_llama()
    recorder = Recorder(model, tmp_path / "s", data="samples", config=EXACT)
    plain(recorder, torch.arange(8), take(samples(), torch.arange(8)), model)
    recorder.close()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.mul_(1.1)
    check(record(tmp_path / "s", other, lambda *a: plain(*a, other)), other)
