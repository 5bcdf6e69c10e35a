"""On a real GPU: agreement, streams, graphs, large sizes, the engine, compute-sanitizer.

    FUDLR_CUDA=ON pip install --no-build-isolation -e ".[test]" && pytest -m gpu -ra

Without a GPU, or without GPU kernels in the library, all of them skip and say so; a machine that
promises one sets FUDLR_REQUIRE_GPU=1, and its absence then fails.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fudlr_ext import _C, Engine, label_logits, label_loss, ops
from fudlr_ext.testing import OP_CASES, Shape, as_tuple, check_agreement, is_float

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))
from calls import CALLS
from cases import every_job, every_op, has_kernel
from launches import after_late_inputs, replayed


def missing():
    if not torch.cuda.is_available():
        return "no CUDA device is at hand"
    if "cuda" not in _C.devices():
        return "the library has no GPU kernels: build it with FUDLR_CUDA=ON"
    return None


if missing() and os.environ.get("FUDLR_REQUIRE_GPU") == "1":
    raise RuntimeError(f"FUDLR_REQUIRE_GPU=1, and {missing()}")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(missing()), reason=str(missing()))]

# docs/cuda.md lists the ops that have no kernel for GPUs yet.
ON_GPU = [case for case in OP_CASES if has_kernel("fudlr", case.name, "cuda")]
PACKED = [case for case in ON_GPU if case.packed]
LLAMA = Shape((512, 100, 700, 3), 16, 2048, 8)


def moved(arguments, device="cuda"):
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]


def on_cpu(result):
    return tuple(x.cpu() for x in as_tuple(result))


def results(case, arguments):
    """What the op returns on the GPU, as a tensor or a tuple on the CPU."""
    got = case.op(*moved(arguments))
    return got.cpu() if isinstance(got, torch.Tensor) else on_cpu(got)


@pytest.mark.parametrize("op", sorted(op for _, op in every_op()))
def test_agrees_with_reference(op):
    """All cases of tests/emu/, on the real kernels."""
    jobs = list(every_job("cuda", only=(op,)))
    assert jobs, "there is no kernel, or no case"
    for job in jobs:
        try:
            job.check(job.run())
        except (AssertionError, RuntimeError, ValueError) as error:
            raise AssertionError(job.label) from error


calls = pytest.mark.parametrize("call", CALLS, ids=str)


@pytest.mark.parametrize(
    ("call", "dtype"), [(call, dtype) for call in CALLS for dtype in call.dtypes], ids=str
)
def test_agrees_at_the_sizes_of_layers_stores_and_catalogues(call, dtype):
    job = call.large_job(dtype, "cuda")
    job.check(job.run())


@calls
def test_the_same_call_gives_the_same_bits(call):
    given = moved(call.arguments())
    assert all(map(torch.equal, call.run(given), call.run(given)))


@calls
def test_runs_on_the_current_stream(call):
    given = moved(call.arguments())
    assert all(map(torch.equal, after_late_inputs(call.run, given), call.run(given)))


@calls
def test_is_captured_by_a_graph_and_never_waits(call):
    given = moved(call.arguments())
    assert all(map(torch.equal, replayed(call.run, given), call.run(given)))


@calls
def test_autocast_changes_nothing(call):
    given = moved(call.arguments())
    plain = call.run(given)
    with torch.autocast("cuda", torch.bfloat16):
        assert all(map(torch.equal, call.run(given), plain))


SEEN = [case for case in ON_GPU if case.variant == "unseen"]


@pytest.mark.parametrize("case", SEEN, ids=str)
def test_seen_items_that_make_no_sense_give_nan_and_touch_nothing(case):
    *given, offsets, listed = moved(case.make(case.small[0], torch.float32))
    for wrong in (offsets + 1, offsets.flip(0) + 1, offsets - (1 << 40)):
        found = as_tuple(case.op(*given, wrong, listed))
        assert all(x.isnan().all() if is_float(x) else (x == -1).all() for x in found)
    found = as_tuple(case.op(*given, offsets, torch.full_like(listed, 1 << 40)))
    assert not listed.numel() or found[0].isnan().all()
    torch.cuda.synchronize()


@pytest.mark.parametrize("case", ON_GPU, ids=str)
def test_float16_is_refused_on_the_cpu_alone(case):
    given = case.make(case.small[0], torch.float16)
    with pytest.raises(ValueError, match="or float16 on a GPU"):
        case.op(*given)
    check_agreement(results(case, given), case, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rank", [8, 64, 256])
@pytest.mark.parametrize("case", PACKED, ids=str)
def test_agrees_at_real_sizes(case, rank, dtype):
    arguments = case.make(Shape(LLAMA.lengths, rank, LLAMA.b, LLAMA.extra), dtype)
    check_agreement(results(case, arguments), case, arguments)


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_any_strides(case):
    arguments = moved(case.make(Shape((3, 0, 1, 20), 8, 50), torch.float32))
    expected = case.op(*arguments)
    spaced = [
        x.repeat_interleave(2, -1)[..., ::2] if isinstance(x, torch.Tensor) else x
        for x in arguments
    ]
    assert torch.equal(case.op(*spaced), expected)


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_bad_offsets_give_nan_and_touch_nothing(case):
    left, right, *rest, _ = moved(case.make(Shape((2, 1, 3), 4, 5, 2), torch.float32))
    for wrong in ([0, 2, 3, 7], [-1, 2, 3, 6], [0, 5, 3, 6], [0, 2, 3, 1 << 40]):
        offsets = torch.tensor(wrong, device="cuda")
        assert case.op(left, right, *rest, offsets).isnan().all()
    torch.cuda.synchronize()


@pytest.mark.parametrize("case", PACKED, ids=str)
def test_the_same_words_as_on_the_cpu(case):
    left, right, *rest, offsets = case.make(Shape((2, 1, 3), 4, 5, 2), torch.float32)
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match="same positions") as caught:
            case.op(*moved((left[:-1], right, *rest, offsets), device))
        said.append(str(caught.value).splitlines()[0])
    assert said[0] == said[1]


def test_more_than_two_to_the_31_numbers():
    n, a, b = 70_000, 16, 2048
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB of free GPU memory for 2.3e9 numbers")
    left = torch.randn(n, a, device="cuda")
    right = torch.randn(n, b, device="cuda")
    grads = ops.sample_grads(left, right, torch.arange(n + 1, device="cuda"))
    assert grads.numel() > 1 << 31
    for i in (0, n // 2, n - 1):
        torch.testing.assert_close(grads[i], left[i, :, None] * right[i], rtol=0, atol=0)


def test_the_engine_on_a_cuda_model():
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = peft.get_peft_model(
        transformers.LlamaForCausalLM(config),
        peft.LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False),
    )
    tokens = torch.randint(0, 64, (5, 12))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    grads = []
    for device in ("cpu", "cuda"):
        engine = Engine(model.to(device))
        there = {name: x.to(device) for name, x in batch.items()}
        grads.append(engine.sample_grads(label_logits, label_loss, there).cpu())
    worst = (grads[0] - grads[1]).abs().max() / grads[0].abs().max()
    assert worst < 1e-3  # another order of float32 sums through two layers


def test_compute_sanitizer():
    """On the cases that the emulated kernels have in every test run, all ops among them."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    script = "from cases import every_job\nfor job in every_job('cuda', some=True): job.run()\n"
    paths = os.pathsep.join(
        [str(Path(__file__).parents[1] / "emu"), os.environ.get("PYTHONPATH", "")]
    )
    for check in ("memcheck", "racecheck"):
        done = subprocess.run(
            [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
