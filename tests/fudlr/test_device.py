"""Where the model runs: what each option chooses, and what is refused before long work."""

import json
import threading

import pytest
import torch
from fudlr.common import device
from fudlr.common.device import ahead, moved, place
from fudlr.common.errors import UsageError


@pytest.fixture
def gpus(monkeypatch):
    """gpus(capabilities, …): what torch and the library say of a machine."""

    def have(*capabilities, built=True, kernels=("sm_80", "sm_90", "compute_80")):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        devices = ["cpu", "cuda"] if kernels else ["cpu"]
        library = type("_C", (), {"devices": lambda: devices, "cuda_architectures": lambda: kernels,
                                  "isa": device.LIBRARY.isa})  # fmt: skip
        monkeypatch.setattr(device, "LIBRARY", library)

    return have


@pytest.mark.parametrize(
    ("asked", "machine", "found"),
    [
        ("auto", {"gpus": [(9, 0)]}, "cuda:0"),
        ("auto", {"gpus": [(12, 0)]}, "cuda:0"),  # by the PTX
        ("auto", {"gpus": []}, "cpu"),
        ("auto", {"gpus": [(7, 5)]}, "cpu"),
        ("auto", {"gpus": [(9, 0)], "kernels": ()}, "cpu"),
        ("auto", {"gpus": [], "built": False}, "cpu"),
        ("cpu", {"gpus": [(9, 0)]}, "cpu"),
        ("cuda", {"gpus": [(9, 0), (8, 0)]}, "cuda:0"),
        ("cuda:1", {"gpus": [(7, 5), (8, 6)]}, "cuda:1"),
        ("cuda", {"gpus": [], "built": False}, r"this torch .* was built without CUDA"),
        ("cuda", {"gpus": []}, "torch finds no GPU"),
        ("cuda:2", {"gpus": [(9, 0)]}, r"there is no cuda:2, only cuda:0 \(card 0\)"),
        ("cuda", {"gpus": [(9, 0)], "kernels": ()}, "without kernels for GPUs"),
        ("cuda", {"gpus": [(7, 5)]}, "card 0 is sm_75, .* for sm_80, sm_90, compute_80 and later"),
    ],
)
def test_devices(gpus, capsys, asked, machine, found):
    cards = machine.pop("gpus")
    gpus(*cards, **machine)
    if found.startswith(("cpu", "cuda:")):
        assert str(place(asked, "float32").device) == found
        # A GPU that is there and left alone is told of, and how to change that.
        told = asked == "auto" and found == "cpu" and bool(cards)
        assert ("The model runs on the CPU" in capsys.readouterr().err) == told
    else:
        with pytest.raises(UsageError, match=found) as error:
            place(asked, "float32")
        assert "model.device to cpu" in error.value.remedy


@pytest.mark.parametrize(
    "case",
    [
        ("float16", "auto", "cpu", "float32"),
        ("float16", "auto", "cuda", "float16"),
        ("bfloat16", "auto", "cpu", "bfloat16"),
        ("float64", "auto", "cpu", "float32"),
        (None, "auto", "cpu", "float32"),
        ("bfloat16", "float32", "cpu", "float32"),
        ("float32", "float16", "cuda", "float16"),
    ],
)
def test_types(gpus, tmp_path, case):
    own, asked, where, found = case
    gpus((9, 0))
    (tmp_path / "config.json").write_text(json.dumps({"dtype": own} if own else {}))
    assert place(where, asked, tmp_path).dtype == getattr(torch, found)
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": own} if own else {}))
    assert place(where, asked, tmp_path).dtype == getattr(torch, found)


def test_a_type_that_the_device_has_not_is_refused():
    with pytest.raises(UsageError, match=r"in float16 .*float16 on GPUs alone"):
        place("cpu", "float16")


class Elsewhere(torch.Tensor):
    """A host tensor whose ways are written down."""

    said: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            cls.said.append(("pinned", threading.current_thread() is threading.main_thread()))
            return args[0]
        if name == "to":
            assert kwargs == {"non_blocking": True}
            cls.said.append(("moved", threading.current_thread() is threading.main_thread()))
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})


def test_batches_are_made_and_pinned_ahead_and_moved_here():
    made = []

    def batches(fails=False):
        for number in range(4):
            made.append((number, threading.current_thread() is threading.main_thread()))
            if fails and number == 2:
                raise ValueError("no such sample")
            yield {"a": torch.full((1,), number).as_subclass(Elsewhere), "n": [number]}

    Elsewhere.said.clear()
    cuda = torch.device("cuda", 0)
    seen = []
    for batch in ahead(batches(), cuda):
        assert len(made) >= min(len(seen) + 1, 4)
        seen.append((int(batch["a"][0]), batch["n"]))
    assert seen == [(i, [i]) for i in range(4)]
    assert all(not here for _, here in made)
    assert ("pinned", False) in Elsewhere.said
    assert ("moved", True) in Elsewhere.said
    assert ("moved", False) not in Elsewhere.said
    broken = ahead(batches(fails=True), cuda)
    assert [next(broken)["n"], next(broken)["n"]] == [[0], [1]]
    with pytest.raises(ValueError, match="no such sample"):
        next(broken)
    early = ahead(batches(), cuda)
    next(early)
    early.close()  # waits for what is under way
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]
    same = {"a": torch.ones(1)}
    assert moved(same, device.CPU) is same
