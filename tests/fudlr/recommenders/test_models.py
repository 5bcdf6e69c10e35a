"""Any architecture, target, dtype and adapter gives the gradients of autograd."""

import warnings

import numpy as np
import pytest
import torch
from fudlr import lora
from fudlr.common.errors import ModelError
from fudlr.config import LoraSettings, TrainConfig
from fudlr.train.adapter import train_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from prompt_models import ARCHITECTURES, KINDS, adapted, base, recommender, split
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from fudlr_ext import Engine
from fudlr_ext.errors import UnsupportedLayerError

ATTENTION = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def data():
    return split()


def rows_and_alone(made, samples):
    engine = Engine(made.model)
    rows = engine.sample_grads(made.forward, made.loss, made.collate(samples))
    parameters = engine.parameters()
    for p in parameters:
        p.requires_grad_(True)
    alone = []
    for i in range(len(samples)):
        batch = made.collate(samples.take(np.array([i])))
        loss = made.loss(made.forward(made.model, batch), batch).sum()
        grads = torch.autograd.grad(loss, parameters)
        alone.append(torch.cat([g.flatten() for g in grads]))
    return rows, torch.stack(alone)


def error(rows, alone):
    return float(((rows - alone).norm(dim=1) / alone.norm(dim=1)).max())


@pytest.mark.parametrize("targets", [ATTENTION, ALL], ids=["qv", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_sample_gradients_are_those_of_batches_of_one(kind, architecture, targets, data):
    made = recommender(kind, data, adapted(base(architecture), targets))
    assert error(*rows_and_alone(made, data.train.take(np.arange(4)))) < 1e-5


def test_gpt2_is_refused_by_name():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says that it turns fan_in_fan_out on
        model = lora.attach(model, LoraSettings(rank=2, targets=("c_attn",)), 0)
    with pytest.raises(UnsupportedLayerError, match="Conv1D"):
        Engine(model)


@pytest.mark.parametrize(
    ("options", "said"), [({"use_dora": True}, "Dora"), ({"lora_bias": True}, "lora_bias")]
)
def test_variants_are_refused_by_name(options, said):
    with pytest.raises(UnsupportedLayerError, match=said):
        Engine(adapted(base(), ATTENTION, **options))


def test_quantised_base_is_refused_by_name():
    """What bitsandbytes, GPTQ or AWQ put in a linear layer's place is another class."""

    class Linear4bit(nn.Linear):
        pass

    model = adapted(base(), ATTENTION)
    for module in model.modules():
        if hasattr(module, "base_layer"):
            module.base_layer.__class__ = Linear4bit
    with pytest.raises(UnsupportedLayerError, match="Linear4bit"):
        Engine(model)


def test_bf16_base_with_float32_adapter(data):
    """The base's own rounding is in both; the adapter's gradients agree far below it."""
    model = adapted(base().to(torch.bfloat16), ATTENTION)
    assert {p.dtype for p in Engine(model).parameters()} == {torch.float32}
    made = recommender("titles", data, model)
    rows, alone = rows_and_alone(made, data.train.take(np.arange(4)))
    exact = recommender("titles", data, adapted(base(), ATTENTION))
    truth = rows_and_alone(exact, data.train.take(np.arange(4)))[1]
    # At most twice as far from float32 as plain autograd in bfloat16.
    assert error(rows, truth) < 2 * error(alone, truth)


def test_an_adapter_of_somebody_else(data, tmp_path):
    """Saved by peft itself, with options that ours never has."""
    options = LoraConfig(
        r=4, lora_alpha=3, target_modules=r".*layers\.1.*\.(up_proj|q_proj)", lora_dropout=0.1,
        rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 7}, use_rslora=True,
    )  # fmt: skip
    foreign = get_peft_model(base(), options)
    for name, parameter in foreign.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    foreign.save_pretrained(tmp_path / "theirs")
    loaded = lora.load(base(), tmp_path / "theirs").eval()
    made = recommender("titles", data, loaded)
    samples = data.train.take(np.arange(4))
    assert error(*rows_and_alone(made, samples)) < 1e-5
    theirs = recommender("titles", data, PeftModel.from_pretrained(base(), tmp_path / "theirs"))
    torch.testing.assert_close(made.evaluate(samples), theirs.evaluate(samples))


def test_checkpointing_trains_the_same(data):
    found = []
    for checkpointing in (False, True):
        made = recommender("titles", data, adapted(base()))
        engine = Engine(made.model)
        config = TrainConfig(epochs=1, batch=16, checkpointing=checkpointing)
        found.append(
            train_adapter(made, engine, data.train.take(np.arange(32)), config, engine.theta())
        )
    torch.testing.assert_close(found[0].theta, found[1].theta, rtol=1e-4, atol=1e-5)


def test_gradients_under_checkpointing_are_the_same(data):
    samples = data.train.take(np.arange(4))
    made = recommender("titles", data, adapted(base()))
    plain, _ = rows_and_alone(made, samples)
    made.model.gradient_checkpointing_enable({"use_reentrant": False})
    made.model.train()  # where checkpointing is active, and no dropout changes anything
    engine = Engine(made.model)
    found = engine.sample_grads(made.forward, made.loss, made.collate(samples))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-7)


def test_a_matrix_without_gradient_is_no_silent_zero(data):
    made = recommender("titles", data, adapted(base()))
    engine = Engine(made.model)
    forward = made.forward
    layer = next(m for m in made.model.modules() if hasattr(m, "lora_A"))

    def without(model, batch):
        layer._disable_adapters = True
        try:
            return forward(model, batch)
        finally:
            layer._disable_adapters = False

    made.forward = without
    with pytest.raises(ModelError, match=r"2 of \d+ LoRA matrices got no gradient"):
        train_adapter(made, engine, data.train.take(np.arange(8)), TrainConfig(), engine.theta())
