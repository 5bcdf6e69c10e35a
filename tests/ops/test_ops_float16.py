"""float16 is for GPUs: the CPU says so, and where else to go."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))
import attention_cases
import decoder_cases
from backward_cases import BACKWARDS

from fudlr_ext.testing import OP_CASES

HALF = r"or float16 on a GPU: (it is|they are) Half on cpu\. Convert (it|them) with \.float\(\)"


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_refused_by_an_op(case):
    with pytest.raises(ValueError, match=f"^{case.name}: .*{HALF}"):
        case.op(*case.make(case.small[0], torch.float16))


@pytest.mark.parametrize(
    "case", [case for case in OP_CASES if case.name in BACKWARDS and case.variant != "unseen"],
    ids=str,
)  # fmt: skip
def test_refused_by_a_backward(case):
    name, make, *_ = BACKWARDS[case.name]
    with pytest.raises(ValueError, match=f"^{name}: .*{HALF}"):
        getattr(torch.ops.fudlr_grad, name)(*make(case, case.small[0], torch.float16))


@pytest.mark.parametrize("op", [*decoder_cases.DECODER_WAYS, *attention_cases.WAYS])
def test_refused_in_the_decoder(op):
    def random(*size):
        return torch.randn(*size).half()

    if op in attention_cases.WAYS:
        given = attention_cases.make(op, random, attention_cases.SIZES[0], "all")
    else:
        make, way, *_ = decoder_cases.DECODER_WAYS[op]
        given = make(op, random, decoder_cases.DECODER_SIZES[1], way)
    with pytest.raises(ValueError, match=f"^{op}: .*{HALF}"):
        getattr(torch.ops.fudlr_decoder, op)(*given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_norms_scales_are_sums(dtype):
    """As its kernels for GPUs return them: float32, which the derivatives then take."""
    x, weight = torch.empty(3, 4, dtype=dtype, device="meta"), torch.empty(4, dtype=dtype)
    y, scale, total = torch.ops.fudlr_decoder.rms_norm(x, x, weight.to("meta"), 1e-5)
    assert [each.dtype for each in (y, scale, total)] == [dtype, torch.float32, dtype]
