"""These tests are many and small: threads of several test processes would only fight."""

import pytest
import torch

from fudlr_ext import _C

torch.set_num_threads(1)


@pytest.fixture(params=_C.built_isas().split(","))
def isa(request):
    """Each instruction set that this machine has."""
    before = _C.isa()
    try:
        _C.set_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _C.set_isa(before)
