"""A real Trainer's epoch as a store: rows at the samples' own scale, training as it was."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fudlr.common.errors import StoreError, UsageError
from fudlr.gradients.store import (
    Numbered,
    Recorder,
    RecorderCallback,
    RecordingWarning,
    Store,
    digest,
)
from fudlr.influence.unroll import Unrolled
from recorder_cases import EXACT, N, adapted_llama, every_direction, exact_rows, samples
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from fudlr_ext import Engine
from fudlr_ext.errors import UnsupportedLayerError

IDS = torch.arange(N)
# Other order of the same sums, as for the recorder, and a factor that the loss's gradient rounds.


def close(exact):
    """Float32 rounding beside the largest entry: the engine's fused layers add up in another order
    than the model's own; 1e-5 of it was measured."""
    return {"rtol": 0.0, "atol": 2e-5 * float(exact.abs().max())}


def rows():
    batch = samples()
    return [{name: tensor[i].tolist() for name, tensor in batch.items()} for i in range(N)]


def trainer(folder, callback=None, model=None, *, more=(), **options):
    """Batches of five: the last is short, and so is the last step where batches are accumulated."""
    options = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 5,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        **options,
    }
    callbacks = [*([callback] if callback else []), *more]
    data = Numbered(rows()) if callback else rows()
    arguments = TrainingArguments(str(folder / "out"), **options)
    return Trainer(model or adapted_llama(), arguments, train_dataset=data, callbacks=callbacks)


WHOLE = EXACT.model_copy(update={"epochs": "all"})


def callback(folder, **options):
    options = {"config": EXACT, "projection": every_direction(adapted_llama()), **options}
    return RecorderCallback(folder / "s", data="samples", **options)


@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("per_step", [True, False], ids=["tokens of a step", "tokens of a batch"])
def test_rows_are_the_samples_own_gradients(tmp_path, accumulated, per_step):
    made = trainer(
        tmp_path,
        callback(tmp_path),
        learning_rate=0.0,
        gradient_accumulation_steps=accumulated,
        max_grad_norm=1e-3,
    )
    made.model_accepts_loss_kwargs = per_step
    made.train()
    store, model = Store.open(tmp_path / "s"), made.model
    exact = exact_rows(model, samples())
    torch.testing.assert_close(store.read(IDS), store.projection().project(exact), **close(exact))


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("clip", [0.05, 0.0], ids=["clipped", "not clipped"])
def test_a_whole_training_can_be_unrolled(tmp_path, accumulated, clip):
    """Steps, rates, decay, clipping and shares are the Trainer's: repeated, they end at θ*."""
    made = trainer(
        tmp_path,
        callback(tmp_path, config=WHOLE),
        gradient_accumulation_steps=accumulated,
        max_grad_norm=clip,
        weight_decay=0.1,
        lr_scheduler_type="linear",
    )
    made.train()
    store, engine = Store.open(tmp_path / "s"), Engine(made.model)
    assert store.manifest.recipe.optimiser == "AdamW"
    assert store.steps == made.state.global_step
    assert store.epochs.unique().tolist() == [1, 2]
    unrolled = Unrolled.of(store, engine.shapes, order=IDS, theta=engine.theta())
    assert torch.allclose(unrolled.update(torch.zeros(N)), engine.theta(), rtol=1e-4, atol=1e-6)


def test_a_sample_without_labels_has_the_row_zero_and_ends_nothing(tmp_path):
    unlabelled = rows()
    unlabelled[5]["labels"] = [-100] * len(unlabelled[5]["labels"])
    made = trainer(tmp_path, callback(tmp_path, config=WHOLE))
    made.train_dataset, made.eval_dataset = Numbered(unlabelled), Numbered(rows()[:7])
    made.args.eval_strategy, made.args.eval_steps = "steps", 2  # which is not recorded
    made.train()
    assert made.state.global_step == 10
    store = Store.open(tmp_path / "s")
    assert store.n == N
    assert not store.read(IDS[5:6]).any()
    assert store.read(IDS[4:5]).any()


def test_training_is_the_same_bit_for_bit_and_bound_to_what_it_left(tmp_path):
    options = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    alone = trainer(tmp_path, **options)
    alone.train()
    recorded = trainer(tmp_path, callback(tmp_path), **options)
    recorded.train()
    pairs = zip(recorded.model.named_parameters(), alone.model.parameters(), strict=True)
    for (name, left), right in pairs:
        assert torch.equal(left, right), name
    assert Store.open(tmp_path / "s").binding.adapter == digest(Engine(recorded.model).theta())
    # Not none: for gradient checkpointing transformers leaves one itself.
    assert hooks(recorded.model) == hooks(alone.model)
    assert not (tmp_path / "s.recording").exists()


def hooks(model):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


class Watch(TrainerCallback):
    """Stops like a kill at a step."""

    def __init__(self, stop):
        self.stop = stop

    def on_step_end(self, args, state, control, **now):
        if state.global_step == self.stop:
            raise KeyboardInterrupt


def test_ids_of_ones_own_pass_a_collator_that_drops_columns(tmp_path):
    class Data(Numbered):
        def __getitem__(self, index):
            return {**self.samples[index], "mine": 10 * index + 3}

    def drops(batch):
        assert "mine" not in batch[0]
        return default_data_collator(batch)

    hook = callback(tmp_path, ids="mine")
    made = trainer(tmp_path, hook, learning_rate=0.0)
    made.train_dataset, made.data_collator = Data(rows()), hook.collator(drops)
    made.train()
    store = Store.open(tmp_path / "s")
    exact = store.projection().project(exact_rows(made.model, samples()))
    torch.testing.assert_close(store.read(10 * IDS + 3), exact, **close(exact))


def killed(folder, at, **changes):
    """Train until a kill after a step, saving every second one; five steps an epoch."""
    hook = callback(folder, **changes)
    made = trainer(folder, hook, more=[Watch(at)], save_strategy="steps", save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    # What a kill leaves is what is on disk now; closing would bring the rest there too.
    recording = folder / "s.recording"
    shutil.copytree(recording, folder / "left")
    hook.close()
    shutil.rmtree(recording)
    (folder / "left").rename(recording)


@pytest.mark.parametrize("saved", [4, 8], ids=["before the epoch", "within it"])
def test_a_training_that_resumes_goes_on_with_the_recording(tmp_path, saved):
    trainer(tmp_path / "whole", callback(tmp_path / "whole")).train()
    whole = Store.open(tmp_path / "whole" / "s")
    killed(tmp_path, 9)
    again = trainer(tmp_path, callback(tmp_path))
    again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{saved}"))
    store = Store.open(tmp_path / "s")
    assert store.binding == whole.binding
    turned, straight = store.projection(), whole.projection()
    # Checkpoints fix the directions at another moment: compare what both spans lift to.
    left, right = (p.lift(s.read(IDS)) for p, s in ((turned, store), (straight, whole)))
    torch.testing.assert_close(left, right, **close(right))


def test_a_whole_training_that_resumes_is_recorded_as_one_that_did_not(tmp_path):
    """Byte for byte, with the same checkpoints: the kill leaves no trace."""
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path / "whole", callback(tmp_path / "whole", config=WHOLE), **options).train()
    killed(tmp_path, 7, config=WHOLE)
    again = trainer(tmp_path, callback(tmp_path, config=WHOLE), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    names = sorted(path.name for path in (tmp_path / "s").glob("*.safetensors"))
    assert names == sorted(path.name for path in (tmp_path / "whole" / "s").glob("*.safetensors"))
    for name in names:
        assert (tmp_path / "s" / name).read_bytes() == (
            tmp_path / "whole" / "s" / name
        ).read_bytes(), name


def test_a_resumption_that_the_recording_does_not_know_is_refused(tmp_path):
    killed(tmp_path, 9)
    for file in (tmp_path / "s.recording").glob("points.json"):
        file.unlink()
    again = trainer(tmp_path, callback(tmp_path))
    with pytest.raises(UsageError, match=r"resumes at step 8, .*does not go on from there"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))


def test_an_epoch_that_stops_early_leaves_no_store_and_says_so(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **now):
            control.should_training_stop = state.global_step == 8

    with pytest.warns(RecordingWarning, match="showed 15 of 24 samples"):
        trainer(tmp_path, callback(tmp_path), more=[Stop()]).train()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"remove_unused_columns": True}, "takes the ids away"),
        ({"dataloader_drop_last": True}, "leaves samples of the last epoch out"),
        ({"label_smoothing_factor": 0.1}, "label smoothing"),
        ({"max_steps": 8}, r"middle of it, at step 8"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused_before_training(tmp_path, options, said):
    made = trainer(tmp_path, callback(tmp_path), **options)
    with pytest.raises(UsageError, match=said):
        made.train()
    assert made.state.global_step == 0


def test_too_little_disk_is_seen_before_training(tmp_path, monkeypatch):
    made = trainer(tmp_path, callback(tmp_path, config=WHOLE))
    free = SimpleNamespace(free=9)
    monkeypatch.setattr("fudlr.gradients.store.steps.shutil.disk_usage", lambda _: free)
    with pytest.raises(StoreError, match=r"of 48 samples .* MB, and 0.0 MB are free"):
        made.train()
    assert made.state.global_step == 0


def own_loss(outputs, labels, num_items_in_batch=None):
    return outputs.logits.sum()


class Halved(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).logits.square().mean()


class Router(torch.nn.Module):
    def forward(self, module, args, outputs):
        outputs.loss = outputs.loss * 1.5
        return outputs


def wrong(case, folder):
    hook = callback(folder)
    if case == "a loss function":
        made = trainer(folder, hook)
        made.compute_loss_func = own_loss
        return made, "was not given labels"
    if case == "another loss":
        made = trainer(folder, hook)
        made.__class__ = Halved
        return made, "was not the loss that the model returned"
    if case == "a loss with more in it":
        model = adapted_llama()
        model.register_forward_hook(Router())
        return trainer(folder, hook, model), "its label tokens' mean cross-entropy"
    made = trainer(folder, hook)
    assert case == "no ids"
    made.train_dataset = rows()
    return made, "no ids, one integer a sample, as 'sample_id'"


CASES = ["a loss function", "another loss", "a loss with more in it", "no ids"]


@pytest.mark.parametrize("case", CASES)
def test_a_training_that_rows_would_not_fit_is_refused_in_its_first_epoch(tmp_path, case):
    made, said = wrong(case, tmp_path)
    with pytest.raises(UsageError, match=said):
        made.train()
    assert made.state.global_step < 5


def test_an_adapter_that_the_engine_does_not_know_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = adapted_llama().unload()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    made = trainer(tmp_path, callback(tmp_path), model)
    with pytest.raises(UnsupportedLayerError, match="Dora"):
        made.train()
    assert made.state.global_step == 0


@pytest.mark.parametrize("fails", ["batch", "step", "flush", "finish"])
def test_what_fails_within_the_recorded_epoch_ends_the_recording_alone(
    tmp_path, monkeypatch, fails
):
    options = {"save_strategy": "steps", "save_steps": 7}
    alone = trainer(tmp_path, **options)
    alone.train()

    def fail(*_, **__):
        raise RuntimeError("no memory is left")

    monkeypatch.setattr(Recorder, fails, contextmanager(fail) if fails == "batch" else fail)
    made = trainer(tmp_path, callback(tmp_path), **options)
    with pytest.warns(RecordingWarning, match=r"s was not made, .*no memory is left.*recorded is"):
        made.train()
    pairs = zip(made.model.named_parameters(), alone.model.parameters(), strict=True)
    for (name, left), right in pairs:
        assert torch.equal(left, right), name
    assert not (tmp_path / "s").exists()
    assert hooks(made.model) == hooks(alone.model)
