"""Small random models with adapters, and the plain way to the numbers that the engine gives."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fudlr_ext import Engine, label_logits, label_loss

VOCABULARY = 41
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_dropout": 0.2,
}


class CleanNorm(nn.Module):
    """RMS norm in the input's own precision; transformers' rounds to float32 within."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.eps = norm.weight, getattr(norm, "variance_epsilon", None) or norm.eps
        self.offset = int(type(norm).__name__.startswith("Gemma"))

    def forward(self, x):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.offset + self.weight) * x * scale


def clean(model):
    """Make a model exact in float64, for what is compared with second derivatives."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, CleanNorm(child))
    return model


def llama(**changes):
    """Grouped-query attention; the output matrix is the embedding."""
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": True, **changes}))


def qwen2(**changes):
    """Biases on query, key and value."""
    return Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "tie_word_embeddings": False, **changes}))


def qwen3(**changes):
    """Norms of single heads, none of whose weights is one."""
    model = Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "head_dim": 8, **changes}))
    for name, p in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(p, mean=1.0, std=0.3)
    return model


def gemma(**changes):
    """Norms with weights beside 1, and a gate by GELU."""
    model = GemmaForCausalLM(GemmaConfig(**{**SIZES, "head_dim": 8, **changes}))
    for name, p in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(p, std=0.3)
    return model


def adapted(model, dtype=torch.float32, adapter="default", **changes):
    """Wrap in an adapter whose B is not zero, so that A has a gradient."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.3}
    model = get_peft_model(model, LoraConfig(**{**options, **changes}), adapter_name=adapter)
    randomise(model)
    return model.to(dtype)


def randomise(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.endswith(".bias"):
            nn.init.normal_(parameter, std=0.2)


def batch_of(n=5, t=9, seed=0):
    """Padded prompts of unequal length with one to four labels each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (n, t), generator=generator)
    labels = torch.full_like(ids, -100)
    mask = torch.ones_like(ids)
    for i in range(n):
        end = t - i % 3
        mask[i, end:] = 0
        labels[i, end - 1 - i % 4 : end] = ids[i, end - 1 - i % 4 : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def sample(batch, i):
    return {key: value[i : i + 1] for key, value in batch.items()}


def lora_parameters(model, adapter="default"):
    return [
        p
        for name, p in model.named_parameters()
        if f"lora_A.{adapter}" in name or f"lora_B.{adapter}" in name
    ]


def plain_grads(model, batch, adapter="default", forward=label_logits, loss=label_loss):
    """Per-sample gradients by one backward pass a sample, through peft's own forward."""
    parameters = lora_parameters(model, adapter)
    required = [p.requires_grad for p in parameters]
    training = model.training
    model.eval()
    for p in parameters:
        p.requires_grad_(True)
    rows = []
    for i in range(len(batch["input_ids"])):
        one = sample(batch, i)
        value = loss(forward(model, one), one).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    for p, flag in zip(parameters, required, strict=True):
        p.requires_grad_(flag)
    model.train(training)
    return torch.stack(rows)


def relative(got, expected):
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())


def tiny(base=llama, dtype=torch.float64, **changes):
    options = {"attn_implementation": "sdpa", "attention_dropout": 0.0, **changes}
    return adapted(clean(base(**options)), dtype, lora_dropout=0.0).eval()


def unpadded(n=3, t=7):
    batch = batch_of(n, t)
    ids = batch["input_ids"]
    labels = torch.where(torch.arange(t) >= t - 3, ids, -100)
    return {"input_ids": ids, "labels": labels}


def part(model, name):
    return next(module for path, module in model.named_modules() if path.endswith(name))


def fused(engine):
    return engine.report().fused_layers > 0


def check(model, batch, *, engine=None, forward=label_logits, loss=label_loss, curved=True):
    """First and second order against autograd of single samples; return the engine."""
    engine = engine or Engine(model)
    expected = plain_grads(model, batch, forward=forward, loss=loss)
    got = engine.sample_grads(forward, loss, batch)
    assert relative(got, expected) <= 1e-9, str(engine.report())
    if curved:
        vector = torch.randn(1, engine.d, dtype=torch.float64)
        product = engine.hvp(forward, loss, batch, vector)
        assert relative(product, plain_hvp(model, batch, vector[0], forward, loss)) <= 1e-8
        engine.sample_dots(forward, loss, batch, vector)
    return engine


def plain_hvp(model, batch, vector, forward, loss):
    """The mean loss's Hessian product by double backward through peft's own forward."""
    parameters = lora_parameters(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value = loss(forward(model, batch), batch).mean()
    gradient = torch.autograd.grad(value, parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    product = torch.autograd.grad(flat @ vector, parameters)
    return torch.cat([g.flatten() for g in product])[None]
