"""A deep model in half precision makes much of rounding: that alone is no reason to refuse it."""

import pytest
import torch
from fudlr.common.errors import ModelError
from fudlr.config import RunConfig, merge
from fudlr.data import synthetic
from fudlr.recommenders import ItemTokens
from fudlr.recommenders.base import _distance
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def deep():
    """Errors grow from layer to layer, and rows of a batch are rounded otherwise than one alone."""
    data = synthetic()
    config = merge(RunConfig(), {"data.source": "synthetic", "data.window": 8})
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=data.n_items + 1,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=16,
            num_attention_heads=2,
            initializer_range=0.4,
        )
    )
    generator = torch.Generator().manual_seed(1)

    def other_kernel(module, given, output):
        if isinstance(output, torch.Tensor) and len(output) > 1:
            part = torch.rand(output.shape, generator=generator) - 0.5
            return (output * (1 + part * torch.finfo(output.dtype).eps)).to(output.dtype)
        return output

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(other_kernel)
    return ItemTokens(model.to(torch.bfloat16).eval(), None, data, config)


def test_what_rounding_makes_is_measured(deep):
    with torch.no_grad():
        apart = [_distance(found, alone) for _, found, alone in deep._probe()]
    assert max(apart) > 0.05  # more than is allowed without a measurement
    deep.probe()


def test_a_model_that_sees_padding_is_refused_all_the_same(deep, monkeypatch):
    whole = ItemTokens._inputs
    monkeypatch.setattr(deep, "_inputs", lambda ids, mask: whole(deep, ids, torch.ones_like(mask)))
    with pytest.raises(ModelError, match="same tokens alone"):
        deep.probe()
