"""What is attention's alone, on a real GPU; the rest of it: test_gpu_ops.py."""

import pytest
import test_gpu_ops
import torch
from calls import CALLS
from test_gpu_ops import moved, on_cpu

pytestmark = test_gpu_ops.pytestmark
CALL = next(call for call in CALLS if call.op == "attention" and call.way == "all")


def test_the_same_words_as_on_the_cpu():
    q, k, *rest = CALL.arguments()
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match="k must be") as caught:
            CALL.run(moved((q, k[:, :-1].contiguous(), *rest), device))
        said.append(str(caught.value).splitlines()[0])
    assert said[0] == said[1]


def test_offsets_elsewhere_are_refused():
    q, k, v, *offsets = CALL.arguments()
    with pytest.raises(ValueError, match=r"query_offsets must be int64 .* on cuda"):
        CALL.run([*moved((q, k, v)), *offsets])


def test_more_than_two_to_the_31_numbers():
    """The last of 70,000 samples lies beyond 2³¹ numbers."""
    n, heads, width = 70_000, 32, 64
    if torch.cuda.mem_get_info()[0] < 45 << 30:
        pytest.skip("needs 45 GB of free GPU memory: four arrays of 2.3e9 numbers")
    q, k, v = (torch.randn(n * 16, heads * width, device="cuda") for _ in range(3))
    offsets = torch.arange(n + 1, device="cuda") * 16
    limits = torch.arange(1, 17, device="cuda").repeat(n)
    (out,) = CALL.run((q, k, v, offsets, offsets, limits, heads, heads, 0.125))
    last = [x[-16:] for x in (q, k, v)]
    alone = CALL.run((*last, offsets[:2], offsets[:2], limits[:16], heads, heads, 0.125))
    for found, wanted in zip(on_cpu(out[-16:]), on_cpu(alone[0]), strict=True):
        assert torch.equal(found, wanted)
