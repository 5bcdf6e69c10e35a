"""Backward passes, models and weights that a recorder refuses."""

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.gradients.store import Recorder, StoreError
from recorder_cases import adapted_llama, losses
from test_recorder import IDS, record
from torch.distributed.fsdp import fully_shard

from fudlr_ext.errors import EngineError, NoGradientError


def twice(recorder, index, batch, model):
    with recorder.batch(IDS[index]):
        loss = losses(model, batch).mean()
        loss.backward(retain_graph=True)
        loss.backward()


def none(recorder, index, batch, model):
    with recorder.batch(IDS[index]):
        losses(model, batch)


def late(recorder, index, batch, model):
    with recorder.batch(IDS[index]):
        loss = losses(model, batch).mean()
        losses(model, batch).mean().backward()
    loss.backward()


def packed(recorder, index, batch, model):
    with recorder.batch(IDS[index[:4]], divisor=8):
        losses(model, batch).mean().backward()


WRONG = {
    twice: "arrived twice",
    none: "28 never arrived",
    late: "closed already",
    packed: "whose rows are not the samples",
}


@pytest.mark.parametrize("step", WRONG, ids=lambda step: step.__name__)
def test_a_backward_pass_that_is_not_the_batchs_is_refused(tmp_path, step):
    model = adapted_llama()
    with pytest.raises((EngineError, NoGradientError), match=WRONG[step]):
        record(tmp_path / "s", model, lambda *a: step(*a, model))


def test_sharded_parameters_are_refused_by_name(tmp_path, one_process):
    model = fully_shard(adapted_llama())
    with pytest.raises(UsageError, match="parameters are sharded"):
        Recorder(model, tmp_path / "s", data="samples")


@pytest.mark.parametrize("weights", [torch.tensor([1.0] * 7 + [-1.0]), torch.ones(3)])
def test_weights_that_cannot_be_are_refused(tmp_path, weights):
    recorder = Recorder(adapted_llama(), tmp_path / "s", data="samples")
    with (
        pytest.raises(UsageError, match="weights from 0 on"),
        recorder.batch(IDS[:8], weights=weights),
    ):
        pass


def test_nothing_recorded_is_an_error(tmp_path):
    with (
        pytest.raises(StoreError, match="no batch was recorded"),
        Recorder(adapted_llama(), tmp_path / "s", data="samples"),
    ):
        pass
