from __future__ import annotations

import json

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.gradients.store import Binding, Store, StoreError, StoreWriter, fingerprint
from fudlr.gradients.store.encoding import SCALE_BLOCK, decode, row_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from store_cases import BINDING, DTYPES, OTHER, encoded, random_rows, write_store


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 5, 128, 300])
def test_rows_come_back_within_their_types_error(tmp_path, dtype, dim):
    rows = random_rows(23, dim)
    store = write_store(tmp_path / "store", rows, dtype)
    assert (store.n, store.dim, store.spec.dtype) == (23, dim, dtype)
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


def test_one_scale_a_block_keeps_small_modules():
    rows = torch.cat([torch.randn(50, 128) * 1e-4, torch.randn(50, 128)], dim=1)
    back = decode(*encoded(rows, "int8"))
    small = (back - rows)[:, :128].norm() / rows[:, :128].norm()
    assert small < 0.02


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 9), st.integers(1, 200), st.integers(0, 2**31 - 1))
def test_encoding_does_not_depend_on_the_batch(dtype, count, dim, seed):
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    codes, scales = encoded(rows, dtype)
    for i in range(count):
        code, scale = encoded(rows[i : i + 1], dtype)
        assert torch.equal(code[0], codes[i])
        assert scale is None or torch.equal(scale[0], scales[i])


def test_zero_rows_stay_zero():
    assert decode(*encoded(torch.zeros(2, 130), "int8")).abs().max() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shard_is_a_safetensors_file(tmp_path, dtype):
    rows = random_rows(7, 33)
    store = write_store(tmp_path / "store", rows, dtype)
    tensors = load_file(store.shards[0].path)
    assert tensors["ids"].tolist() == list(range(7))
    back = decode(tensors["rows"], tensors.get("scales"))
    assert torch.equal(back, store.read(torch.arange(7)))


def test_equal_content_is_equal_files(tmp_path):
    rows = random_rows(20, 9)
    one = write_store(tmp_path / "one", rows)
    two = write_store(tmp_path / "two", rows)
    for left, right in zip(one.shards, two.shards, strict=True):
        assert left.path.read_bytes() == right.path.read_bytes()


def test_content_hash_sees_rows_and_ids_and_not_shards(tmp_path):
    rows = random_rows(20, 9)
    whole = write_store(tmp_path / "a", rows).content_sha256()
    assert write_store(tmp_path / "b", rows, shard_rows=3, writer="x").content_sha256() == whole
    order = torch.randperm(20)
    assert write_store(tmp_path / "c", rows[order], ids=order).content_sha256() == whole
    assert write_store(tmp_path / "d", rows, ids=order).content_sha256() != whole
    assert write_store(tmp_path / "e", rows * 1.5).content_sha256() != whole


def test_shards_have_the_asked_size_whatever_the_batches(tmp_path):
    store = write_store(tmp_path / "store", random_rows(23, 4), shard_rows=7)
    assert [shard.rows for shard in store.shards] == [7, 7, 7, 2]


def test_manifest_lists_what_the_shards_hold(tmp_path):
    rows = random_rows(12, 4)
    with StoreWriter(tmp_path, BINDING, 4, "int8", shard_rows=8, kept={"energy": 0.9}) as store:
        store.append(torch.arange(8), rows[:8])
        store.flush()
        store.kept["energy"] = 0.6
        store.append(torch.arange(8, 12), rows[8:])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["row_range"] for entry in manifest["shards"]] == [[0, 8], [8, 12]]
    assert [entry["id_span"] for entry in manifest["shards"]] == [[0, 7], [8, 11]]
    assert manifest["kept"] == pytest.approx({"energy": 0.8})
    assert manifest["spec"]["binding"]["adapter"] == BINDING.adapter
    assert Store.open(tmp_path).kept == manifest["kept"]


def test_without_its_manifest_a_store_still_opens(tmp_path):
    rows = random_rows(12, 4)
    write_store(tmp_path, rows)
    (tmp_path / "manifest.json").unlink()
    assert torch.equal(Store.open(tmp_path, BINDING).read(torch.arange(12)), rows)


@pytest.mark.parametrize("name", ["model", "adapter", "data", "order"])
def test_a_foreign_store_is_refused_by_what_differs(tmp_path, name):
    write_store(tmp_path, random_rows(3, 4))
    asked = Binding(**{**BINDING.__dict__, name: OTHER})
    with pytest.raises(
        StoreError, match=rf"another (training )?{name} \(.*instead of {OTHER[:12]}"
    ):
        Store.open(tmp_path, asked)
    with pytest.raises(StoreError, match=f"another {name}"):
        StoreWriter(tmp_path, asked, 4, "float32")


def test_a_writer_refuses_a_store_of_another_kind(tmp_path):
    write_store(tmp_path, random_rows(3, 4))
    with pytest.raises(StoreError, match="dim 4 instead of 5"):
        StoreWriter(tmp_path, BINDING, 5, "float32")
    with pytest.raises(StoreError, match="dtype float32 instead of int8"):
        StoreWriter(tmp_path, BINDING, 4, "int8")


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "store"
    for change in ({"dim": 0}, {"dtype": "float16"}, {"writer": "a/b"}, {"shard_rows": -1}):
        with pytest.raises(UsageError):
            StoreWriter(folder, BINDING, **{"dim": 4, **change})
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        Binding("a", "b", "c", "d")
    assert not folder.exists()


def test_rows_that_do_not_fit_are_refused(tmp_path):
    with StoreWriter(tmp_path, BINDING, 4, "float32") as store:
        with pytest.raises(UsageError):
            store.append(torch.arange(2), torch.zeros(2, 5))
        with pytest.raises(UsageError):
            store.append(torch.arange(3), torch.zeros(2, 4))
        bad = torch.zeros(3, 4)
        bad[1, 2] = torch.nan
        with pytest.raises(StoreError, match="sample 11 the first"):
            store.append(torch.tensor([10, 11, 12]), bad)
    assert Store.open(tmp_path).n == 0


def test_a_sample_is_stored_once(tmp_path):
    rows = torch.ones(3, 4)
    with StoreWriter(tmp_path, BINDING, 4, "float32", shard_rows=2) as store:
        store.append(torch.tensor([5, 6, 7]), rows)  # 5 and 6 in a shard, 7 waiting
        for ids in ([1, 5, 2], [7, 1, 2], [1, 2, 1]):
            with pytest.raises(StoreError, match="stored already"):
                store.append(torch.tensor(ids), rows)
        assert store.missing(torch.tensor([9, 7, 5, 1])).tolist() == [9, 1]
    with StoreWriter(tmp_path, BINDING, 4, "float32") as again:
        assert again.missing(torch.tensor([9, 7, 5, 1])).tolist() == [9, 1]
        with pytest.raises(StoreError, match="sample 7"):
            again.append(torch.tensor([7]), rows[:1])


def test_appended_rows_may_be_overwritten_by_the_caller(tmp_path):
    rows = torch.ones(3, 4)
    with StoreWriter(tmp_path, BINDING, 4, "float32") as store:
        store.append(torch.arange(3), rows)
        rows.zero_()
    assert Store.open(tmp_path).read(torch.arange(3)).min() == 1


def test_an_error_in_the_loop_keeps_what_was_appended(tmp_path):
    def interrupted() -> None:
        with StoreWriter(tmp_path, BINDING, 4) as store:
            store.append(torch.arange(3), torch.ones(3, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Store.open(tmp_path).n == 3


def test_sizes_on_disk(tmp_path):
    assert (row_bytes(1792, "float32"), row_bytes(1792, "bfloat16")) == (7168, 3584)
    assert row_bytes(1792, "int8") == 1792 + 4 * 14
    store = write_store(tmp_path, random_rows(50, 1792), "bfloat16", shard_rows=50)
    assert store.bytes < 50 * (3584 + 8) + 4096


def test_fingerprints_tell_values_shapes_and_names_apart(tmp_path):
    tensor = torch.arange(6.0)
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    found = [
        fingerprint(tensor),
        fingerprint(tensor.view(2, 3)),
        fingerprint(tensor.double()),
        fingerprint({"a": tensor}),
        fingerprint({"b": tensor}),
        fingerprint(file),
        fingerprint("abc"),
        fingerprint("a", "bc"),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint({"a": tensor, "b": file_tensor()}) == fingerprint(
        {"b": file_tensor(), "a": tensor.clone()}
    )


def file_tensor() -> torch.Tensor:
    return torch.ones(2, dtype=torch.bfloat16)
