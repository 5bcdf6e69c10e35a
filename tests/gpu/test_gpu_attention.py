"""Attention and its derivatives on a real GPU, at real sizes; small ones: test_gpu_ops.py."""

import sys
from pathlib import Path

import pytest
import test_gpu_ops
import torch
from test_gpu_ops import moved, on_cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))
import attention_cases
from cases import FLOATS, attention_job

pytestmark = test_gpu_ops.pytestmark
CALLS = [(op, way) for op, ways in attention_cases.WAYS.items() for way in ways]
calls = pytest.mark.parametrize(("op", "way"), CALLS)


def arguments(op, way, dtype=torch.float32, size=attention_cases.SIZES[-1]):
    generator = torch.Generator().manual_seed(0)
    return attention_cases.make(
        op, lambda *n: torch.randn(*n, generator=generator).to(dtype), size, way
    )


def run(op, given):
    result = getattr(torch.ops.fudlr_trunk, op)(*given)
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@calls
def test_agrees_at_real_sizes(op, way, dtype):
    job = attention_job(op, attention_cases.LARGE, way, dtype, "cuda")
    job.check(job.run())


@calls
def test_the_same_call_gives_the_same_bits(op, way):
    given = moved(arguments(op, way, size=attention_cases.LARGE))
    assert all(map(torch.equal, run(op, given), run(op, given)))


@calls
def test_runs_on_the_current_stream(op, way):
    """The queries are made on a side stream, late: a kernel on another one would read too soon."""
    given = moved(arguments(op, way))
    expected = run(op, given)
    late = [torch.zeros_like(given[0]), *given[1:]]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late[0].copy_(given[0])
        got = run(op, late)
    stream.synchronize()
    assert all(map(torch.equal, got, expected))


@calls
def test_is_captured_by_a_graph_and_never_waits(op, way):
    given = moved(arguments(op, way))
    run(op, given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = run(op, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for x in given[:3]:
        x.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, got, run(op, given)))


def test_the_same_words_as_on_the_cpu():
    q, k, *rest = arguments("attention", "all")
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match="k must be") as caught:
            run("attention", moved((q, k[:, :-1].contiguous(), *rest), device))
        said.append(str(caught.value).splitlines()[0])
    assert said[0] == said[1]


def test_offsets_elsewhere_are_refused():
    q, k, v, *offsets = arguments("attention", "all")
    with pytest.raises(ValueError, match=r"query_offsets must be int64 .* on cuda"):
        run("attention", [*moved((q, k, v)), *offsets])


def test_more_than_two_to_the_31_numbers():
    """The last of 70,000 samples lies beyond 2³¹ numbers."""
    n, heads, width = 70_000, 32, 64
    if torch.cuda.mem_get_info()[0] < 45 << 30:
        pytest.skip("needs 45 GB of free GPU memory: four arrays of 2.3e9 numbers")
    q, k, v = (torch.randn(n * 16, heads * width, device="cuda") for _ in range(3))
    offsets = torch.arange(n + 1, device="cuda") * 16
    limits = torch.arange(1, 17, device="cuda").repeat(n)
    (out,) = run("attention", (q, k, v, offsets, offsets, limits, heads, heads, 0.125))
    last = [x[-16:] for x in (q, k, v)]
    alone = run("attention", (*last, offsets[:2], offsets[:2], limits[:16], heads, heads, 0.125))
    for found, wanted in zip(on_cpu(out[-16:]), on_cpu(alone[0]), strict=True):
        assert torch.equal(found, wanted)
