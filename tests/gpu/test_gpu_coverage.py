"""That the tests for a GPU name every op; no GPU is needed to see it."""

import torch
from calls import CALLS

from fudlr_ext.testing import as_tuple


def test_every_op_is_tested_on_a_gpu():
    from cases import case_names, every_op

    ops = {op for _, op in every_op()}
    assert {call.op for call in CALLS} == ops
    assert all(case_names(op) for op in ops)


def test_every_call_can_be_made():
    """On the CPU, which takes the same arguments."""
    for call in CALLS:
        results = as_tuple(call.run(call.arguments()))
        assert all(isinstance(x, torch.Tensor) for x in results), str(call)
