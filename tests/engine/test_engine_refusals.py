"""What the engine cannot do it refuses by name, and what went wrong it says."""

import pytest
import torch
from engine_models import adapted, batch_of, llama
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn

from fudlr_ext import (
    Engine,
    EngineError,
    NoGradientError,
    NonFiniteLossError,
    UnsupportedLayerError,
    label_logits,
    label_loss,
)

FACE = (label_logits, label_loss)
Q0 = "layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_a_base_of_another_kind():
    model = adapted(llama())

    class Masked(nn.Linear):
        """Whatever it computes, and however it goes back."""

    layer = model.get_submodule(f"base_model.model.model.{Q0}")
    layer.base_layer.__class__ = Masked
    with pytest.raises(UnsupportedLayerError, match=f"{Q0} was to be used: its base is Masked"):
        Engine(model)


def test_shared_matrices():
    model = adapted(llama(), target_modules=["q_proj"])
    first, second = (layer.self_attn.q_proj for layer in model.base_model.model.model.layers)
    second.lora_A["default"].weight = first.lora_A["default"].weight
    with pytest.raises(UnsupportedLayerError, match="its lora_A is shared with"):
        Engine(model)


def test_no_adapter():
    with pytest.raises(EngineError, match="no LoRA layer at all"):
        Engine(llama())
    other = get_peft_model(llama(), IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(UnsupportedLayerError, match="peft's type IA3"):
        Engine(other)
    with pytest.raises(EngineError, match=r"adapter 'other'.*only \['default'\]"):
        Engine(adapted(llama()), adapter="other")


def test_an_adapter_in_float16_on_a_cpu():
    model, batch = adapted(llama()).eval(), batch_of()
    engine = Engine(model)
    model.half()
    for use in (lambda: Engine(model), lambda: engine.sample_grads(*FACE, batch)):
        with pytest.raises(UnsupportedLayerError, match="float16, which only GPUs"):
            use()
    for parameter in engine.parameters():
        parameter.data = parameter.data.float()
    assert engine.sample_grads(*FACE, batch).isfinite().all()


def test_adapter_that_is_not_alone_and_active():
    model = adapted(llama())
    engine, batch = Engine(model), batch_of()
    model.merge_adapter()
    with pytest.raises(UnsupportedLayerError, match="unmerge_adapter"):
        engine.sample_grads(*FACE, batch)
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(UnsupportedLayerError, match="are disabled"):
        engine.sample_grads(*FACE, batch)
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedLayerError, match=r"active adapters .* are \['default'\]"):
        Engine(model, adapter="other")
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UnsupportedLayerError, match=r"set_adapter\('default'\)"):
        engine.sample_grads(*FACE, batch)


def test_layer_without_gradient():
    model = adapted(llama())
    engine, batch = Engine(model), batch_of()

    def first_layer_only(model, batch):
        inner = model.base_model.model
        hidden = inner.model(batch["input_ids"], output_hidden_states=True).hidden_states[1]
        return hidden.mean(1)

    with pytest.raises(NoGradientError, match=r"7 took no part.*layers\.1\.self_attn\.q_proj"):
        engine.sample_grads(first_layer_only, lambda hidden, batch: hidden.sum(1), batch)
    with pytest.raises(NoGradientError, match="7 took no part"):
        engine.vjp(first_layer_only, batch, torch.ones(1, 5, 32))


def test_detached_loss():
    engine = Engine(adapted(llama()))

    def detached(model, batch):
        return label_logits(model, batch).detach()

    with pytest.raises(NoGradientError, match="14 took no part"):
        engine.sample_grads(detached, label_loss, batch_of())
    with pytest.raises(NoGradientError, match="14 took no part"):
        engine.ggn_vp(detached, label_loss, batch_of(), torch.zeros(1, engine.d))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_losses_that_are_no_numbers(value):
    engine = Engine(adapted(llama()))

    def loss(outputs, batch):
        spoiled = torch.zeros(5)
        spoiled[[1, 3]] = value
        return label_loss(outputs, batch) + spoiled

    with pytest.raises(NonFiniteLossError, match=r"2 are NaN or infinite: samples \[1, 3\]"):
        engine.sample_grads(label_logits, loss, batch_of())
    with pytest.raises(NonFiniteLossError, match=r"\[1, 3\]"):
        engine.hvp(label_logits, loss, batch_of(), torch.zeros(1, engine.d))


def test_loss_of_the_wrong_shape():
    engine = Engine(adapted(llama()))
    with pytest.raises(EngineError, match=r"one loss a sample, \[n\]: it returned \[\]"):
        engine.sample_grads(label_logits, lambda o, b: label_loss(o, b).mean(), batch_of())
    with pytest.raises(EngineError, match="it returned float"):
        engine.sample_grads(label_logits, lambda o, b: 1.0, batch_of())


def test_rows_that_are_not_samples():
    engine = Engine(adapted(llama()))
    with pytest.raises(
        EngineError, match=r"gradients of 2 samples .* whose rows are not the samples"
    ):
        engine.sample_grads(label_logits, lambda o, b: label_loss(o, b)[:2], batch_of())


def test_sample_without_labels():
    engine, batch = Engine(adapted(llama())), batch_of()
    batch["labels"][2] = -100
    with pytest.raises(EngineError, match=r"1 samples have none but -100: \[2\]"):
        engine.sample_grads(*FACE, batch)


def test_model_without_output_matrix():
    with pytest.raises(EngineError, match="has no output matrix"):
        label_logits(nn.Linear(2, 2), batch_of())


def test_model_that_returns_a_tuple():
    engine = Engine(adapted(llama()))
    inner = engine.model.base_model.model
    inner.register_forward_hook(lambda module, args, out: (out.logits,))
    with pytest.raises(EngineError, match="returns tuple without logits"):
        engine.sample_grads(*FACE, batch_of())


def test_outputs_and_cotangents_of_the_wrong_kind():
    engine, batch = Engine(adapted(llama())), batch_of()
    with pytest.raises(EngineError, match="tensor or a tuple of tensors: it returned dict"):
        engine.vjp(lambda m, b: {"logits": label_logits(m, b)}, batch, torch.ones(1, 5))
    with pytest.raises(EngineError, match=r"vjp: cotangents \[k, \.\.\.\]"):
        engine.vjp(label_logits, batch, torch.ones(1, 5))
    logits = label_logits(engine.model, batch)
    with pytest.raises(EngineError, match=r"vjp: cotangents \[k, \.\.\.\]"):
        engine.vjp(label_logits, batch, (torch.ones(1, *logits.shape), torch.ones(1)))


def test_weights_of_the_wrong_number():
    engine = Engine(adapted(llama()))
    with pytest.raises(ValueError, match=r"weights must be \[w, n\] with \[5\] at the end"):
        engine.grad_sum(*FACE, batch_of(), torch.ones(4))


def test_backward_inside_of_the_loss():
    engine = Engine(adapted(llama()))

    def loss(outputs, batch):
        losses = label_loss(outputs, batch)
        losses.sum().backward(retain_graph=True)
        return losses

    with pytest.raises(EngineError, match="differentiated from outside"):
        engine.sample_grads(label_logits, loss, batch_of())
