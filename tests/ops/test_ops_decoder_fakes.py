"""The decoder's ops without numbers: as the real ones in all but these."""

import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))
import attention_cases
import decoder_cases

from fudlr_ext.testing import as_tuple

DECODER = {op: (make, ways) for op, (make, *ways) in decoder_cases.DECODER_WAYS.items()}
CALLS = [(op, way) for op, (_, ways) in DECODER.items() for way in ways]
CALLS += [(op, way) for op, ways in attention_cases.WAYS.items() for way in ways]


def random(*size):
    return torch.randn(*size)


def arguments(op, way):
    """One set of each size."""
    if op in DECODER:
        return [DECODER[op][0](op, random, size, way) for size in decoder_cases.DECODER_SIZES]
    return [attention_cases.make(op, random, size, way) for size in attention_cases.SIZES]


def form(x):
    return x.shape, x.stride(), x.storage_offset(), x.dtype, x.device


def forms(result):
    """Shapes and the like, and which of the results share their memory."""
    tensors = () if result is None else as_tuple(result)
    places = [x.untyped_storage()._cdata for x in tensors]
    return [(*form(x), places.index(place)) for x, place in zip(tensors, places, strict=True)]


def test_all_ops_are_called():
    names = {
        schema.name.removeprefix("fudlr_decoder::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fudlr_decoder::")
    }
    assert names == {op for op, _ in CALLS}


@pytest.mark.parametrize(("op", "way"), CALLS)
def test_the_same_but_for_the_numbers(op, way):
    call = getattr(torch.ops.fudlr_decoder, op)
    spares = [{}, {"spare": 3}] if "spare" in str(call.default._schema) else [{}]
    for given in arguments(op, way):
        for spare in spares:
            with FakeTensorMode() as mode:
                fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in given]
                fake = forms(call(*fakes, **spare))
            assert fake == forms(call(*given, **spare))


def test_the_sum_without_anything_added_is_the_input():
    weight = torch.ones(3)
    with FakeTensorMode() as mode:
        x, weight = mode.from_tensor(torch.ones(2, 3)), mode.from_tensor(weight)
        assert torch.ops.fudlr_decoder.rms_norm(x, None, weight, 1e-5)[2] is x


def test_compiles_in_one_graph():
    def gate(x, weight):
        y, _, total = torch.ops.fudlr_decoder.rms_norm(x, x, weight, 1e-5)
        return torch.ops.fudlr_decoder.swiglu(y) + total[:, :4]

    x, weight = torch.randn(5, 8), torch.randn(8)
    compiled = torch.compile(gate, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, weight), gate(x, weight))
