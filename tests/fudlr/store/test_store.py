"""What is written is read: rows within their type's error, steps, epochs, equal files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from fudlr.common.errors import NumericalError, UsageError
from fudlr.gradients.store import Binding, Recipe, Store, StoreError, StoreWriter
from fudlr.gradients.store.shards import SCALE_BLOCK, decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from store_cases import BINDING, DTYPES, OTHER, D, append_all, random_rows, whole, write_store


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 128, 300])
def test_rows_come_back_within_their_types_error(tmp_path, dtype, dim):
    rows = random_rows(23, dim)
    store = write_store(tmp_path / "store", rows, dtype)
    assert (store.n, store.dim, store.dtype, store.steps) == (23, dim, dtype, 5)
    error = (store.read(torch.arange(23)) - rows).abs()
    if dtype == "float32":
        assert error.max() == 0
    elif dtype == "bfloat16":  # 8 bits of significand: half a unit in the last place
        assert bool((error <= rows.abs() * 2**-8).all())
    else:  # half a step of the largest number in the block
        short = -dim % SCALE_BLOCK
        blocks = torch.nn.functional.pad(rows, (0, short)).view(23, -1, SCALE_BLOCK)
        step = (blocks.abs().amax(2) / 127).repeat_interleave(SCALE_BLOCK, 1)[:, :dim]
        assert bool((error <= step * 0.5001).all())
        assert error.max() > 0 or dim == 1


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 9), st.integers(1, 200), st.integers(0, 2**31 - 1))
def test_encoding_does_not_depend_on_the_batch(dtype, count, dim, seed):
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    rows[:, :1] = 0  # a block of zeros where dim is 1
    codes, scales = encode(rows, dtype)
    for i in range(count):
        code, scale = encode(rows[i : i + 1], dtype)
        assert torch.equal(code[0], codes[i])
        assert scale is None or torch.equal(scale[0], scales[i])
    assert bool(decode(codes, scales).isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shard_is_a_safetensors_file(tmp_path, dtype):
    store = write_store(tmp_path / "store", random_rows(7, 33), dtype)
    tensors = load_file(store.shards[0].path)
    assert tensors["ids"].tolist() == list(range(7))
    assert tensors["counts"].tolist() == [5, 2]
    assert tensors["shares"].tolist() == pytest.approx([0.2] * 5 + [0.5] * 2)
    back = decode(tensors["rows"], tensors.get("scales"))
    assert torch.equal(back, store.read(torch.arange(7)))


def two_epochs(folder, rows, order):
    with StoreWriter(folder, "course", D, "float32", shard_bytes=1) as writer:
        writer.use(whole(rows.shape[1]))
        append_all(writer, rows, torch.arange(len(rows)), epoch=1)
        append_all(writer, 2 * rows[order], order, epoch=2)
        ends = {"start": torch.zeros(D), "end": torch.ones(D)}
        writer.finish(BINDING, Recipe(l2=0.5), ends)
    return Store.open(folder, check="full")


def test_steps_of_all_epochs_and_rows_of_the_last(tmp_path):
    rows, order = random_rows(12, 4), torch.randperm(12)
    store = two_epochs(tmp_path, rows, order)
    assert store.whole_training
    assert store.manifest.recipe == Recipe(l2=0.5)
    assert torch.equal(store.training()["end"], torch.ones(D))
    assert (store.n, store.steps) == (12, 6)
    assert store.epochs.tolist() == [1] * 3 + [2] * 3
    assert torch.equal(store.read(torch.arange(12)), 2 * rows)
    step = store.step(4)
    assert torch.equal(step.ids, order[5:10])
    assert torch.equal(step.rows, 2 * rows[order[5:10]])
    assert torch.equal(step.mean, torch.full((D,), 1.0))
    assert step.rate == 0.05
    # The last epoch's means 0, 1, 2 of 5, 5 and 2 samples.
    assert torch.allclose(store.mean_gradient(), torch.full((D,), 9 / 12))


def test_a_sample_shown_twice_in_the_last_epoch_has_no_row(tmp_path):
    with StoreWriter(tmp_path, "course", 0, "float32") as writer:
        writer.use(whole(2))
        writer.append(torch.tensor([1, 2]), torch.ones(2, 2))
        writer.append(torch.tensor([2, 3]), torch.ones(2, 2))
        writer.finish(BINDING)
    with pytest.raises(StoreError, match="1 samples are in it twice, sample 2 the first"):
        Store.open(tmp_path).read(torch.tensor([1]))


def test_content_hash_sees_rows_and_ids_and_not_shards(tmp_path):
    rows = random_rows(20, 9)
    entire = write_store(tmp_path / "a", rows).content_sha256()
    other = write_store(tmp_path / "b", rows, shard_rows=3)
    assert len(other.shards) == 4
    assert other.content_sha256() == entire
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert write_store(tmp_path / "d", rows, ids=order).content_sha256() != entire
    assert write_store(tmp_path / "e", rows * 1.5).content_sha256() != entire


@pytest.mark.parametrize("name", ["model", "adapter", "data", "order"])
def test_a_foreign_store_is_refused_by_what_differs(tmp_path, name):
    write_store(tmp_path, random_rows(3, 4))
    asked = Binding(**{**BINDING.__dict__, name: OTHER})
    with pytest.raises(
        StoreError, match=rf"another (training )?{name} \(.*instead of {OTHER[:12]}"
    ):
        Store.open(tmp_path, asked)


def test_a_binding_and_rows_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="not 64 hexadecimal digits"):
        Binding(model="x", adapter=OTHER, data=OTHER, order=OTHER)
    with pytest.raises(UsageError, match="Choose one of float32"):
        StoreWriter(tmp_path / "s", "course", 0, "float16")
    with StoreWriter(tmp_path / "s", "course", D, "float32") as writer:
        writer.use(whole(4))
        for rows, mean in ((torch.ones(2, 3), torch.ones(D)), (torch.ones(2, 4), None)):
            with pytest.raises(UsageError, match="its rows, mean and shares have the shapes"):
                writer.append(torch.arange(2), rows, mean)
        rows = torch.ones(2, 4)
        rows[1, 2] = torch.nan
        with pytest.raises(NumericalError, match="1 of them are not finite, sample 8 the first"):
            writer.append(torch.tensor([7, 8]), rows, torch.ones(D))
        with pytest.raises(StoreError, match="no batch was recorded"):
            writer.finish(BINDING)


def test_a_recording_goes_on_where_whole_shards_end(tmp_path):
    rows = random_rows(40, 4)
    entire = write_store(tmp_path / "whole", rows)
    folder = tmp_path / "store.recording"
    options = {"shard_bytes": 10 * 16}
    with StoreWriter(folder, "course", D, "float32", **options) as writer:
        writer.use(whole(4))
        append_all(writer, rows[:25], torch.arange(25))  # two shards, and a step that is lost
    with pytest.raises(StoreError, match="recording was not finished"):
        Store.open(folder)
    with pytest.raises(StoreError, match="rows of another adapter"):
        StoreWriter(folder, "other course", D, "float32")
    # What kills leave: a shard that is not in the manifest, and files half written.
    for name in ("rows-000002.safetensors", ".rows-000002.0123abcd.safetensors",
                 "..fudlr.0123abcd.json", ".fudlr.0123abcd"):  # fmt: skip
        (folder / name).write_bytes(b"half")
    with StoreWriter(folder, "course", D, "float32", **options) as writer:
        assert writer.steps == 4
        writer.use(whole(4))
        for k, part in enumerate(torch.arange(40).split(5)[4:], start=4):
            writer.append(part, rows[part], torch.full((D,), float(k)), rate=0.1 / (k + 1))
        writer.finish(BINDING)
    assert same_files(folder, tmp_path / "whole")
    assert Store.open(folder, check="full").content_sha256() == entire.content_sha256()


def same_files(left, right):
    names = {p.name for p in left.iterdir()} | {p.name for p in right.iterdir()}
    return all((left / n).read_bytes() == (right / n).read_bytes() for n in names)


def test_going_back_to_a_checkpoint_forgets_what_came_after_it(tmp_path):
    rows, options = random_rows(40, 4), {"shard_bytes": 10 * 16}
    with StoreWriter(tmp_path, "course", D, "float32", **options) as writer:
        writer.use(whole(4))
        append_all(writer, rows, torch.arange(40))
        assert not writer.rewind(3)  # within a shard
        assert writer.steps == 0
        writer.use(whole(4))
        append_all(writer, rows, torch.arange(40))
        assert writer.rewind(4)
        assert writer.steps == 4
        writer.finish(BINDING)
    store = Store.open(tmp_path, check="full")
    assert torch.equal(store.read(torch.arange(20)), rows[:20])
    assert len(list(tmp_path.glob("rows-*"))) == 2


CHILD = """
    import sys, torch
    from fudlr.gradients.store import StoreWriter
    with StoreWriter(sys.argv[1], "course", 0, "float32") as writer:
        print("open", flush=True)
        sys.stdin.readline()
"""


def test_one_process_writes_at_a_time_and_a_killed_one_holds_nothing(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "s")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="another process is doing so"):
            StoreWriter(tmp_path / "s", "course", 0, "float32")
        os.kill(child.pid, signal.SIGKILL)
    StoreWriter(tmp_path / "s", "course", 0, "float32").close()


def test_a_full_disk_stops_the_writer_and_keeps_what_is_stored(tmp_path, monkeypatch):
    from fudlr.gradients.store import writer as module

    real, calls = module.write_shard, []

    def fail(*args):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(module, "write_shard", fail)
    with pytest.raises(StoreError, match="No space left on device"):
        write_store(tmp_path, random_rows(40, 6))
    with StoreWriter(tmp_path, "course", D, "float32") as writer:
        assert writer.steps == 4
