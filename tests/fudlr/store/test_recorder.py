"""Rows from a training's own backward passes: their scale, and what must not change or be lost."""

from __future__ import annotations

import copy
import gc
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from fudlr.common.errors import DataError, UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.store import (
    Recorder,
    Store,
    StoreWriter,
    digest,
    model_fingerprint,
    steps,
)
from fudlr.gradients.store.manifest import read_manifest
from fudlr.gradients.store.steps import StepRecorder
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

from fudlr_ext import Engine

IDS = torch.arange(N) * 10 + 3
# The engine sums the same terms in another order.


def close(exact):
    """Float32 rounding beside the largest entry: the engine's fused layers add up in another order
    than the model's own; 1e-5 of it was measured."""
    return {"rtol": 0.0, "atol": 2e-5 * float(exact.abs().max())}


def record(folder, model, step, config=EXACT, **options):
    """Record all samples in batches of 8, the last one first, without changing the adapter."""
    batch = samples()
    options = {"projection": every_direction(model), "config": config, **options}
    with Recorder(model, folder, data="samples", **options) as recorder:
        for index in reversed(torch.arange(N).split(8)):
            step(recorder, index, take(batch, index))
            model.zero_grad()
    return Store.open(folder)


def plain(recorder, index, batch, model):
    with recorder.batch(IDS[index]):
        losses(model, batch).mean().backward()


def check(store, model):
    exact = exact_rows(model, samples())
    projection = store.projection()
    torch.testing.assert_close(store.read(IDS), projection.project(exact), **close(exact))
    assert projection.energy_kept(exact) == pytest.approx(1)


@pytest.mark.parametrize("n", [5, N])
@pytest.mark.parametrize("fit_samples", [1, 100], ids=["fitted early", "fitted at the end"])
def test_every_number_gives_a_row_a_sample(tmp_path, fit_samples, n, monkeypatch):
    """Rows equal project(sample_grads), whether there are fewer samples than fitting asks for."""
    monkeypatch.setattr(steps, "FIT_SAMPLES", fit_samples)
    config = RecordConfig(dtype="float32")
    model, batch = adapted_llama(), take(samples(), torch.arange(n))
    with Recorder(model, tmp_path / "s", data="samples", config=config) as recorder:
        for index in torch.arange(n).split(8):
            plain(recorder, index, take(batch, index), model)
            model.zero_grad()
    store, exact = Store.open(tmp_path / "s"), exact_rows(model, batch)
    assert store.n == n
    expected = store.projection().project(exact)
    torch.testing.assert_close(store.read(IDS[:n]), expected, **close(exact))


OTHERS = [
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj"], "trainable_token_indices": [3, 30, 7]},
    {"target_modules": ["q_proj"], "lora_bias": True},
]


@pytest.mark.parametrize("adapter", OTHERS)
def test_adapters_of_other_layers_are_recorded(tmp_path, adapter):
    model = adapted_llama(adapter=adapter, attention_bias=True)
    before = model_fingerprint(model)
    store = record(tmp_path / "s", model, partial(plain, model=model))
    check(store, model)
    engine = Engine(model)
    engine.load(engine.theta() + 1)
    assert model_fingerprint(model) == before, "of the frozen weights alone"


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


@pytest.mark.parametrize("step", [plain, accumulated, weighted, token_mean, scaled])
def test_a_row_is_the_samples_own_gradient_whatever_the_loss_was_divided_by(tmp_path, step):
    model = adapted_llama()
    store = record(tmp_path / "s", model, lambda *a: step(*a, model))
    check(store, model)
    if step is plain:
        exact = exact_rows(model, samples())
        torch.testing.assert_close(store.mean_gradient(), exact.mean(0), **close(exact))


def test_a_sample_without_weight_has_the_row_zero(tmp_path):
    model = adapted_llama()
    weights = torch.tensor([1.0] * 7 + [0.0])

    def step(recorder, index, batch):
        with recorder.batch(IDS[index], weights=weights):
            (weights * losses(model, batch)).mean().backward()

    store = record(tmp_path / "s", model, step)
    assert not store.read(IDS[[7, 15, 23]]).any()
    exact = exact_rows(model, samples())
    found = store.read(IDS[:7])
    torch.testing.assert_close(found, store.projection().project(exact[:7]), **close(exact))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_neither_doubles_nor_loses_rows(tmp_path, reentrant):
    model = adapted_llama()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    store = record(tmp_path / "s", model, lambda *a: plain(*a, model))
    model.gradient_checkpointing_disable()
    check(store, model)


def trained(folder, epochs=3, *, kind=torch.optim.AdamW, clip=0.05, adapter=None, **options):
    """Train by two batches of 4 a step, with a falling rate, decay and clipping."""
    model, batch = adapted_llama(adapter=adapter, attention_bias=True), samples()
    optimiser = kind([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.9)
    given = {"optimiser": optimiser, "clip": clip, "config": RecordConfig(), **options}
    recorder = folder and Recorder(model, folder, data="samples", **given)
    order = torch.Generator().manual_seed(2)
    index = torch.cat([torch.randperm(N, generator=order) for _ in range(epochs)]).split(8)
    for chosen in index:
        optimiser.zero_grad()
        for part in chosen.split(4):
            with recorder.batch(IDS[part], divisor=8) if recorder else nullcontext():
                (losses(model, take(batch, part)).sum() / 8).backward()
        if clip:
            parameters = [p for p in model.parameters() if p.requires_grad]
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        falling.step()
    if recorder:
        recorder.finish()
    return model


def test_training_is_the_same_bit_for_bit_and_no_hook_stays(tmp_path):
    recorded, alone = trained(tmp_path / "s"), trained(None)
    for (name, left), right in zip(recorded.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert not any(module._forward_hooks for module in recorded.modules())
    assert not any(p._backward_hooks for p in recorded.parameters())
    assert not (tmp_path / "s.recording").exists()


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [(torch.optim.Adam, {}), *((torch.optim.AdamW, adapter) for adapter in [{}, *OTHERS])],
)
def test_a_whole_training_can_be_unrolled(tmp_path, kind, adapter):
    """Its steps end at the adapter, which is checked; gradients, rates and decay are its own."""
    model = trained(tmp_path / "s", kind=kind, adapter=adapter)
    store, engine = Store.open(tmp_path / "s"), Engine(model)
    assert store.whole_training
    assert (store.n, store.steps, store.epochs.unique().tolist()) == (N, 9, [1, 2, 3])
    assert store.rates.tolist() == pytest.approx([1e-2 * 0.9**t for t in range(9)])
    assert store.manifest.recipe.clip == 0.05
    ids = IDS.sort().values
    unrolled = Unrolled.of(store, engine.shapes, order=ids)
    theta = engine.theta()
    assert float((unrolled.update(torch.zeros(N)) - theta).norm() / theta.norm()) < 1e-5
    assert store.binding.adapter == digest(theta)
    assert store.binding.model == model_fingerprint(model)
    with pytest.raises(DataError, match="whole way"):
        Unrolled.of(store, engine.shapes, order=ids, theta=theta + 0.01)


class Killed(BaseException):
    pass


def test_a_training_that_starts_again_goes_on_with_its_recording(tmp_path, monkeypatch):
    """Killed after every shard, a step each but for those that directions are chosen from: at an
    epoch's end and within; and directions change on the way."""
    monkeypatch.setitem(StoreWriter.__init__.__kwdefaults__, "shard_bytes", 1)
    monkeypatch.setattr(steps, "FIT_SAMPLES", 16)
    options = {"config": RecordConfig(energy=0.999)}
    trained(tmp_path / "whole", **options)
    whole = Store.open(tmp_path / "whole")
    assert whole.projection(0).fingerprint != whole.projection().fingerprint
    assert [shard.steps for shard in whole.shards] == [2, 1] * 3
    change = StoreWriter._change

    def killed(self, **changes):
        change(self, **changes)
        if len(self._manifest.shards) > len(written):
            written.append(1)
            raise Killed

    written = []
    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "_change", killed)
        for _ in whole.shards:
            with pytest.raises(Killed):
                trained(tmp_path / "s", **options)
            gc.collect()  # the killed process's lock
    trained(tmp_path / "s", **options)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.*"))
    assert names == sorted(path.name for path in (tmp_path / "s").glob("*.*"))
    for name in names:
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip": None, "kind": torch.optim.Adagrad}, r"optimiser is torch\.optim\.adagrad"),
        ({"kind": partial(torch.optim.Adam, amsgrad=True)}, "amsgrad"),
    ],
)
def test_an_optimiser_whose_steps_cannot_be_repeated_is_refused(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        trained(tmp_path / "s", **options)


def one_cycle(parameters):
    optimiser = torch.optim.AdamW(parameters)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=9)


def two_rates(parameters):
    groups = [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 2e-3}]
    optimiser = torch.optim.Adam(groups, lr=1e-3)
    return optimiser, torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.9)


@pytest.mark.parametrize(
    ("make", "said"), [(one_cycle, "its betas changed"), (two_rates, "several learning rates")]
)
def test_a_schedule_of_more_than_one_rate_is_refused_at_its_step(tmp_path, make, said):
    model, batch = adapted_llama(), samples()
    optimiser, scheduler = make([p for p in model.parameters() if p.requires_grad])
    recorder = Recorder(model, tmp_path / "s", data="samples", optimiser=optimiser, config=EXACT)

    def train():
        for index in torch.arange(N).split(8):
            with recorder.batch(IDS[index]):
                losses(model, take(batch, index)).mean().backward()
            optimiser.step()
            optimiser.zero_grad()
            scheduler.step()

    with pytest.raises(UsageError, match=said):
        train()
    recorder.close()


def test_a_gradient_that_was_not_recorded_is_refused_at_its_step(tmp_path, monkeypatch):
    model, batch = adapted_llama(), samples()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    recorder = Recorder(model, tmp_path / "s", data="samples", optimiser=optimiser, config=EXACT)
    losses(model, take(batch, torch.arange(8))).mean().backward()
    with recorder.batch(IDS[8:16]):
        losses(model, take(batch, torch.arange(8, 16))).mean().backward()
    with pytest.raises(UsageError, match="another than the recorded one"):
        optimiser.step()
    recorder.close()


def test_directions_are_chosen_anew_where_the_kept_energy_falls(tmp_path, monkeypatch):
    """By an epoch of other gradients; where some samples show the same, no more are taken."""
    shapes = {"x.lora_A.weight": (2, 40), "x.lora_B.weight": (40, 2)}
    monkeypatch.setattr(steps, "FIT_SAMPLES", 16)
    monkeypatch.setattr(steps, "LOOKED", 8)
    config = RecordConfig(dtype="float32", energy=0.9)
    recorder = StepRecorder(tmp_path, "course", shapes, config)
    generator = torch.Generator().manual_seed(0)

    def rows(at):
        wide = torch.zeros(16, 2, 40)
        wide[:, :, at : at + 3] = torch.randn(16, 2, 3, generator=generator)
        return torch.cat([wide.flatten(1), wide.mT.flatten(1)], 1)

    for epoch, (at, parts) in enumerate(((0, 2), (0, 1), (20, 2)), start=1):
        recorder.begin_epoch(epoch)
        for whole in rows(at).split(8)[:parts]:
            assert recorder.projection is None  # whole gradients, to see how much is kept
            recorder.add(torch.arange(8), whole, whole.mean(0))
        assert recorder.projection is not None
        assert recorder.segments == (1 if epoch < 3 else 2)
        assert recorder.projection.energy_kept(rows(at)) > 0.85
    recorder.close()


def test_what_was_flushed_is_on_disk_before_anything_is_closed(tmp_path):
    model, index = adapted_llama(), torch.arange(8)
    recorder = Recorder(model, tmp_path / "s", data="samples", config=EXACT)
    plain(recorder, index, take(samples(), index), model)
    folder = tmp_path / "s.recording"
    assert not list(folder.glob("rows-*"))
    recorder.flush()
    (shard,) = read_manifest(folder).shards
    shard.check_header()
    assert shard.rows == 8
    recorder.close()


def test_a_folder_of_somebody_elses_is_not_removed(tmp_path):
    (tmp_path / "s.recording").mkdir()
    (tmp_path / "s.recording" / "thesis.tex").write_text("mine")
    model = adapted_llama()
    with pytest.raises(UsageError, match=r"no \.fudlr"):
        record(tmp_path / "s", model, lambda *a: plain(*a, model))
    assert (tmp_path / "s.recording" / "thesis.tex").read_text() == "mine"


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
