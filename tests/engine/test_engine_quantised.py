"""Quantised bases: the layer's own forward and input gradient, LoRA's part by the engine.

GPTQ's and AWQ's kernels need a GPU: a stand-in follows their modules' protocol, a packed `qweight`
and a forward of its own. bitsandbytes and torchao are tried themselves where they are installed.
"""

import importlib

import pytest
import torch
from engine_models import batch_of, llama, plain_grads, plain_hvp, qwen2, randomise, relative
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.awq import AwqLoraLinear
from peft.tuners.lora.gptq import GPTQLoraLinear
from torch import nn

from fudlr_ext import Engine, UnsupportedLayerError, label_logits, label_loss
from fudlr_ext.quantised import quantised, unpacked

FACE = (label_logits, label_loss)
PROJECTIONS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "attention_dropout": 0.0}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Unpacked(torch.autograd.Function):
    """A kernel on packed weights, whose backward autograd knows by this alone."""

    @staticmethod
    def forward(ctx, x, qweight, scales):
        ctx.weight = qweight.to(x.dtype) * scales
        return x @ ctx.weight

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.weight.t(), None, None


class QuantLinear(nn.Module):
    """As GPTQ's and AWQ's modules: qweight [d_in, d_out] of integers, scales, and no weight."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().t()
        scales = weight.abs().amax(0, keepdim=True) / 7
        self.register_buffer("qweight", (weight / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x):
        y = Unpacked.apply(x, self.qweight, self.scales)
        return y if self.bias is None else y + self.bias


class NoGradient(QuantLinear):
    """As a kernel for inference alone."""

    def forward(self, x):
        return super().forward(x.detach())


def each_projection(model, change):
    """Put what `change` returns in the place of every projection of the layers."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in PROJECTIONS:
                setattr(module, name, change(child))
    return model


def stand_in(wrapper, linear=QuantLinear, base=llama):
    """A model as peft makes it of GPTQ's or AWQ's layers, by its own class for them."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS)
    model = get_peft_model(base(**SIZES), config)

    def wrapped(layer):
        if wrapper is None:
            return layer
        return wrapper(linear(layer.base_layer), "default", config=config, r=4, lora_alpha=8)

    each_projection(model, wrapped)
    randomise(model)
    return model.eval()


def by_bitsandbytes(bits):
    bnb = pytest.importorskip("bitsandbytes")

    def change(linear):
        shape = (linear.in_features, linear.out_features, linear.bias is not None)
        if bits == 4:
            found = bnb.nn.Linear4bit(*shape, compute_dtype=torch.float32, quant_type="nf4")
            found.weight = bnb.nn.Params4bit(linear.weight.data, False, quant_type="nf4")
        else:
            found = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
            found.weight = bnb.nn.Int8Params(linear.weight.data, False, has_fp16_weights=False)
        found.bias = linear.bias
        return found.to("cpu")  # which quantises

    def quantise(model):
        setattr(model, f"is_loaded_in_{bits}bit", True)  # peft asks for it
        return each_projection(model, change)

    return quantise


def by_torchao(make):
    pytest.importorskip("torchao")
    ao = importlib.import_module("torchao.quantization")

    def quantise(model):
        ao.quantize_(model, make(ao), filter_fn=lambda m, name: name.endswith("_proj"))
        return model

    return quantise


LIBRARIES = {
    "bitsandbytes, 4 bit": lambda: by_bitsandbytes(4),
    "bitsandbytes, 8 bit": lambda: by_bitsandbytes(8),
    "torchao, int8": lambda: by_torchao(lambda ao: ao.Int8WeightOnlyConfig()),
    "torchao, int4": lambda: by_torchao(
        lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))
    ),
}


def check(model):
    """First and second order against single backward passes of the same model; what ran."""
    engine, batch = Engine(model, check=True), batch_of()
    grads = engine.sample_grads(*FACE, batch)
    with unpacked(model):  # bitsandbytes' kernel for inference is of bfloat16
        assert relative(grads, plain_grads(model, batch)) <= 1e-4
    report = engine.report()
    assert (report.fused_layers, len(report.single), report.own_code) == (0, 14, {})
    kind = quantised(
        model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").base_layer
    )
    assert report.why == (f"layers.0 is not fused: q_proj is quantised ({kind})",)
    vectors = torch.randn(2, engine.d)
    dots = engine.sample_dots(*FACE, batch, vectors)
    assert relative(dots, grads @ vectors.T) <= 1e-5
    product = engine.hvp(*FACE, batch, vectors[:1])
    with unpacked(model):
        assert relative(product, plain_hvp(model, batch, vectors[0], *FACE)) <= 1e-4


@pytest.mark.parametrize("base", [llama, qwen2])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_librarys_own_layers(library, base):
    quantise = LIBRARIES[library]()
    model = quantise(base(**SIZES))
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS))
    randomise(model)
    check(model.eval())


def test_weights_that_were_packed_for_inference_are_unpacked():
    """bitsandbytes packs them in evaluation without gradients, and none comes back from then on."""
    model = by_bitsandbytes(4)(qwen2(**SIZES)).to(torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    randomise(model)
    batch = batch_of()
    with unpacked(model):
        truth = plain_grads(model, batch)
    with torch.no_grad():
        model.eval()(batch["input_ids"])
    layer = model.get_submodule("model.model.layers.0.mlp.up_proj")
    packs = layer.support_avx512bf16_for_cpu
    if packs:  # a CPU with bfloat16
        assert layer.weight.quant_state.packing_format_for_cpu
    assert relative(Engine(model).sample_grads(*FACE, batch), truth) <= 2e-2
    assert layer.support_avx512bf16_for_cpu == packs


@pytest.mark.parametrize("wrapper", [GPTQLoraLinear, AwqLoraLinear])
@pytest.mark.parametrize("base", [llama, qwen2])
def test_packed_weights_by_their_protocol(wrapper, base):
    check(stand_in(wrapper, base=base))


def test_a_layer_without_an_input_gradient_is_refused_before_any_pass():
    with pytest.raises(
        UnsupportedLayerError, match=r"NoGradient's qweight.*no gradient comes back"
    ):
        Engine(stand_in(GPTQLoraLinear, NoGradient))


def test_dynamic_activations_are_refused():
    make = by_torchao(lambda ao: ao.Int8DynamicActivationInt8WeightConfig())
    model = get_peft_model(make(llama(**SIZES)), LoraConfig(target_modules=PROJECTIONS))
    with pytest.raises(UnsupportedLayerError, match=r"Int8Tensor.*no gradient comes back"):
        Engine(model)


def test_hooks_on_a_quantised_layer_run():
    """Outside of the layers' parts nothing is skipped: the base is called as a module."""
    model = stand_in(GPTQLoraLinear)
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    layer.base_layer.register_forward_hook(lambda module, given, out: 2 * out)
    batch = batch_of()
    engine = Engine(model)
    assert relative(engine.sample_grads(*FACE, batch), plain_grads(model, batch)) <= 1e-4
