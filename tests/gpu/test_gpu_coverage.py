"""That the tests for a GPU name every op; no GPU is needed to see it."""

from kin import KIN
from test_gpu_ops import LARGE

from fudlr_ext.testing import OP_CASES


def test_every_op_is_tested_on_a_gpu():
    from cases import case_names, every_op

    ops = {op for _, op in every_op()}
    assert {case.name for case in OP_CASES} | {call.op for call in KIN} == ops
    assert all(case_names(op) for op in ops)


def test_every_op_has_a_real_size():
    assert {type(case.shapes[0]) for case in OP_CASES if not case.packed} == set(LARGE)
