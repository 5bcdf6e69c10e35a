"""Recording in several processes: the store of one process at the same global batch."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from fudlr.config import RecordConfig
from fudlr.gradients.store import Numbered, Recorder, RecorderCallback, Store
from fudlr.influence.unroll import Unrolled
from rank_cases import together
from ranks_model import IDS, N, adapted_llama, every_direction, losses, rows, samples, take
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from fudlr_ext import Engine

WHOLE = RecordConfig(dtype="float32", epochs="all")


def loop(folder: Path, size: int, batch: int, accumulated: int, drop_last: bool) -> None:
    """Three epochs of a plain loop; the global batches are those of one process, in parts that
    differ by a sample where they do not divide."""
    model, data = adapted_llama(), samples()
    rank = 0
    if size > 1:
        distributed.init_process_group("gloo")
        rank = distributed.get_rank()
        model = DistributedDataParallel(model)
    # At the usual eps Adam enlarges the rounding of gradients that are nearly 0.
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3)
    options = {"data": "samples", "optimiser": optimiser, "config": WHOLE}
    options["projection"] = every_direction(adapted_llama())
    order = torch.Generator().manual_seed(5)
    with Recorder(model, folder / f"store-{size}", **options) as recorder:
        for epoch in range(3):
            recorder.begin_epoch(epoch + 1)
            for whole in torch.randperm(N, generator=order).split(batch):
                if drop_last and len(whole) < batch:
                    continue
                parts = whole.tensor_split(accumulated)
                for number, part in enumerate(parts):
                    own = part.tensor_split(size)[rank]
                    last = number == len(parts) - 1
                    sync = contextlib.nullcontext() if size == 1 or last else model.no_sync()
                    # DistributedDataParallel takes the mean over processes.
                    divisor = len(whole) / size
                    with sync, recorder.batch(own, divisor=divisor):
                        (losses(model, take(data, own)).sum() / divisor).backward()
                optimiser.step()
                optimiser.zero_grad()
    if size > 1:
        distributed.destroy_process_group()


def assert_same(first: Store, other: Store, model: torch.nn.Module) -> None:
    """Steps, samples, shares and rates are equal, gradients within float32's rounding, and what is
    unrolled too."""
    assert torch.equal(first.counts, other.counts)
    assert torch.equal(first.epochs, other.epochs)
    assert torch.equal(first.rates, other.rates)
    for number in range(first.steps):
        here, there = first.step(number), other.step(number)
        mine, its = here.ids.argsort(), there.ids.argsort()
        assert torch.equal(here.ids[mine], there.ids[its])
        torch.testing.assert_close(here.shares[mine], there.shares[its])
        close = {"rtol": 0.0, "atol": 1e-3 * float(here.rows.abs().max())}
        torch.testing.assert_close(here.rows[mine], there.rows[its], **close)
        close = {"rtol": 0.0, "atol": 1e-3 * float(here.mean.abs().max())}
        torch.testing.assert_close(here.mean, there.mean, **close)
    shapes = Engine(model).shapes
    mask = torch.zeros(N)
    mask[::5] = 1
    ends = [Unrolled.of(store, shapes, order=IDS).update(mask) for store in (first, other)]
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)
    if first.n == N:  # samples that are called by their places need no table of them
        assert torch.equal(Unrolled.of(first, shapes).update(mask), ends[0])


@pytest.mark.parametrize(
    ("size", "batch", "accumulated", "drop_last"),
    [(2, 8, 1, False), (3, 7, 1, False), (2, 10, 2, False), (2, 7, 1, True)],
    ids=["even", "uneven, last short", "no_sync", "drop_last"],
)
def test_a_loop_with_distributed_data_parallel(tmp_path, size, batch, accumulated, drop_last):
    how = (batch, accumulated, drop_last)
    loop(tmp_path, 1, *how)
    together(size, loop, tmp_path, size, *how, folder=tmp_path)
    stores = [Store.open(tmp_path / f"store-{each}", check="full") for each in (1, size)]
    assert_same(*stores, adapted_llama())
    assert not list(tmp_path.glob("*.rank-*"))


def trained(folder: Path, size: int, accumulated: int, options: dict) -> None:
    """A Trainer's two epochs; the global batch is 12 samples."""
    from transformers import Trainer, TrainingArguments

    recorder = RecorderCallback(
        folder / f"store-{size}",
        data="samples",
        config=WHOLE,
        projection=every_direction(adapted_llama()),
    )
    arguments = TrainingArguments(
        str(folder / "out"),
        num_train_epochs=2,
        per_device_train_batch_size=12 // size // accumulated,
        gradient_accumulation_steps=accumulated,
        learning_rate=1e-2,
        adam_epsilon=1e-3,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        **options,
    )
    data = Numbered(rows()[:-2] if arguments.dataloader_drop_last else rows())
    Trainer(adapted_llama(), arguments, train_dataset=data, callbacks=[recorder]).train()


@pytest.mark.parametrize(
    ("accumulated", "options"),
    [(2, {}), (1, {"dataloader_drop_last": True})],
    ids=["accumulated", "drop_last"],
)
def test_a_trainer_in_several_processes(tmp_path, accumulated, options):
    trained(tmp_path, 1, accumulated, options)
    together(2, trained, tmp_path, 2, accumulated, options, folder=tmp_path)
    stores = [Store.open(tmp_path / f"store-{each}", check="full") for each in (1, 2)]
    assert_same(*stores, adapted_llama())
    assert not list(tmp_path.glob("*.rank-*"))
