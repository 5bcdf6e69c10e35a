"""Adapters, weights and models of other kinds: exact, or refused by name."""

import pytest
import torch
from engine_models import (
    adapted,
    batch_of,
    check,
    clean,
    llama,
    lora_parameters,
    part,
    plain_grads,
    qwen2,
    relative,
    tiny,
    unpadded,
)
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fudlr_ext import Engine, EngineError, UnsupportedLayerError, label_logits, label_loss

FACE = (label_logits, label_loss)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_adapter_names_in_the_call():
    model = tiny()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    batch = unpadded()
    engine = Engine(model)

    def named(names):
        return lambda model, batch: label_logits(model, {**batch, "adapter_names": names})

    expected = plain_grads(model, batch)
    with pytest.raises(UnsupportedLayerError, match="sample by sample"):
        engine.sample_grads(named(["default", "other", "default"]), label_loss, batch)
    got = engine.sample_grads(named(["default"] * 3), label_loss, batch)
    assert relative(got, expected) <= 1e-9
    assert "adapter_names" in str(engine.report())


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(bias):
    with pytest.raises(UnsupportedLayerError, match="biases of the base"):
        Engine(adapted(qwen2(), bias=bias))
    check(adapted(clean(llama()), torch.float64, bias=bias).eval(), unpadded())  # which has none


KINDS = {
    "LOHA": LoHaConfig(r=2, target_modules=["q_proj"]),
    "IA3": IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "VERA": VeraConfig(r=2, target_modules=["q_proj"]),
    "ADALORA": AdaLoraConfig(init_r=2, target_r=2, total_step=10, target_modules=["q_proj"]),
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    "OFT": OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_types_are_refused_by_name(kind):
    with pytest.raises(UnsupportedLayerError, match=f"peft's type {kind}"):
        Engine(get_peft_model(llama(), KINDS[kind]))


VARIANTS = {
    "variant Dora": {"use_dora": True},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("message", VARIANTS)
def test_variants_are_refused_by_name(message):
    with pytest.raises(UnsupportedLayerError, match=message):
        Engine(adapted(llama(tie_word_embeddings=False), **VARIANTS[message]))


def test_convolution_base():
    base = GPT2LMHeadModel(GPT2Config(vocab_size=41, n_embd=16, n_layer=2, n_head=2))
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    )
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.2)
    engine = check(model.double().eval(), batch_of())
    assert "its base is Conv1D" in str(engine.report())


class Subclass(torch.Tensor):
    """A weight of a class of its own, as quantisation libraries have them."""


def test_weights_of_other_classes():
    model = adapted(llama())
    layer = part(model, "layers.0.self_attn.q_proj").base_layer
    weight = layer.weight.data.as_subclass(Subclass)
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(UnsupportedLayerError, match="quantised in a way"):
        Engine(model)


@pytest.mark.parametrize("where", ["base", "everything"])
def test_weights_that_are_elsewhere(where):
    from accelerate import cpu_offload

    if where == "base":
        base = clean(llama(attention_dropout=0.0)).double()
        cpu_offload(base)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    else:
        model = tiny()
        cpu_offload(model)
    with pytest.raises(UnsupportedLayerError, match="is not there"):  # peft puts it there as well
        Engine(model)


def test_a_base_wider_than_its_adapter():
    model = adapted(clean(llama()), torch.float64).eval()
    for p in lora_parameters(model):
        p.data = p.data.float()
    assert Engine(model).dtype == torch.float32
    engine, batch = Engine(model), batch_of()
    expected = plain_grads(model, batch)
    assert relative(engine.sample_grads(*FACE, batch), expected) <= 1e-5
    vectors = torch.randn(2, engine.d)
    assert relative(engine.sample_dots(*FACE, batch, vectors), expected @ vectors.T) <= 1e-5
    double = adapted(clean(llama()), torch.float64).eval()
    double.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    exact = Engine(double).hvp(*FACE, batch, vectors.double())
    assert relative(engine.hvp(*FACE, batch, vectors), exact) <= 1e-5


class Routed(nn.Module):
    """Tokens go to one of two experts, each a Linear; always n of them to each."""

    def __init__(self, width):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x):
        flat = x.flatten(0, 1)
        half = len(x)
        parts = [flat[half * i : half * (i + 1)] for i in range(2)]
        out = [expert(part) for expert, part in zip(self.experts, parts, strict=True)]
        return torch.cat([*out, flat[2 * half :]]).view_as(x)


def routed_model(seed=0):
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 6), Routed(6), nn.Linear(6, 6)),
        LoraConfig(r=2, target_modules=["experts.0", "experts.1"]),
    )
    for p in lora_parameters(model):
        nn.init.normal_(p)
    return model.double()


def loss_of(outputs, batch):
    return outputs.square().mean((1, 2))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_experts_with_as_many_tokens_as_samples(n):
    model = routed_model()
    with pytest.raises(EngineError, match="does not belong to that sample alone"):
        Engine(model).sample_grads(lambda m, b: m(b), loss_of, torch.randn(n, 4, 6).double())
    one = torch.randn(1, 4, 6).double()
    got = Engine(model).sample_grads(lambda m, b: m(b), loss_of, one)
    expected = torch.autograd.grad(loss_of(model(one), one).sum(), lora_parameters(model))
    assert relative(got[0], torch.cat([g.flatten() for g in expected])) <= 1e-12


def test_encoder_decoders_shift_labels_themselves():
    base = T5ForConditionalGeneration(
        T5Config(vocab_size=41, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q"]))
    with pytest.raises(EngineError, match="shifts labels by itself"):
        Engine(model).sample_grads(*FACE, batch_of())


@pytest.mark.parametrize("kind", ["bloom", "gpt_neo", "gptj", "opt", "mistral", "qwen3_moe"])
def test_other_models(kind):
    sizes = {
        "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
        "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 3,
                    "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 16},
        "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 16},
        "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 16,
                "word_embed_proj_dim": 16, "max_position_embeddings": 16},
        "mistral": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 3},
        "qwen3_moe": {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8,
                      "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                      "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    }[kind]  # fmt: skip
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, vocab_size=41, attn_implementation="eager", **sizes)
    )
    model = adapted(model, torch.float64, r=2, lora_dropout=0.0).eval()
    batch = unpadded()
    if kind == "qwen3_moe":
        with pytest.raises(EngineError, match="target_parameters"):
            Engine(model).sample_grads(*FACE, batch)
        return
    got = Engine(model).sample_grads(*FACE, batch)
    assert relative(got, plain_grads(model, batch)) <= 1e-6  # norms and softmax in float32


class Merged(nn.Module):
    """Calls its layers with samples and positions in one dimension, or heads beside samples."""

    def __init__(self, way):
        super().__init__()
        self.way, self.first, self.second = way, nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        n, t, _ = x.shape
        if self.way == "flat":
            return self.second(self.first(x.flatten(0, 1)).tanh()).view_as(x)
        if self.way == "windows":
            return self.second(self.first(x.reshape(2 * n, t // 2, 6)).tanh()).view_as(x)
        if self.way == "four dimensions":
            return self.second(self.first(x.view(n, 2, t // 2, 6)).tanh()).view_as(x)
        turned = self.first(x.transpose(0, 1)).tanh()  # positions in front
        if self.way == "flat, positions in front":
            turned = self.first(x.transpose(0, 1).flatten(0, 1)).tanh().view_as(turned)
        return self.second(turned.transpose(0, 1))


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(
    "way", ["flat", "windows", "four dimensions", "positions in front", "flat, positions in front"]
)
def test_batches_merged_into_other_dimensions(way, n):
    model = get_peft_model(Merged(way), LoraConfig(r=2, target_modules=["first", "second"]))
    for p in lora_parameters(model):
        nn.init.normal_(p)
    model, batch = model.double(), torch.randn(n, 4, 6).double()
    engine = Engine(model)
    if "in front" in way:
        for _ in range(2):
            with pytest.raises(EngineError, match=r"that sample alone|rows are not the samples"):
                engine.sample_grads(lambda m, b: m(b), loss_of, batch)
        return
    for scale in (1.0, 2.0):  # the second pass has what the first proved
        ones = [loss_of(model(scale * row[None]), None).sum() for row in batch]
        plain = [torch.autograd.grad(one, lora_parameters(model)) for one in ones]
        expected = torch.stack([torch.cat([g.flatten() for g in row]) for row in plain])
        got = engine.sample_grads(lambda m, b: m(b), loss_of, scale * batch)
        assert relative(got, expected) <= 1e-12


def test_a_merged_batch_is_proven_in_every_pass():
    """The same shape may have its positions in front the next time."""
    module = Merged("flat")
    model = get_peft_model(module, LoraConfig(r=2, target_modules=["first", "second"]))
    for p in lora_parameters(model):
        nn.init.normal_(p)
    model, batch = model.double(), torch.randn(4, 4, 6).double()
    engine = Engine(model)

    def forward(model, batch):  # the same in both passes, as is what was proven of it
        return model(batch)

    engine.sample_grads(forward, loss_of, batch)
    module.way = "flat, positions in front"
    with pytest.raises(EngineError, match="that sample alone"):
        engine.sample_grads(forward, loss_of, batch)
