"""Every kind of bad shard is refused by its name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from fudlr.gradients.store import Binding, Store, StoredRows, StoreError, StoreWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import BINDING, DTYPES, OTHER, random_rows, write_store

SECOND = "rows-0-000001.safetensors"


@pytest.fixture
def folder(tmp_path):
    write_store(tmp_path / "store", random_rows(20, 6), "int8")
    return tmp_path / "store"


def test_truncated_anywhere(folder):
    path = folder / SECOND
    whole = path.read_bytes()
    for size in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=f"{SECOND} is truncated"):
            Store.open(folder)


def test_lengthened(folder):
    with (folder / SECOND).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(StoreError, match=f"{SECOND} is corrupted"):
        Store.open(folder)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_any_changed_byte_is_found_before_rows_are_used(tmp_path, dtype, place, value):
    folder = tmp_path / "store"
    if not folder.exists():
        write_store(folder, random_rows(20, 6), dtype)
    path = folder / SECOND
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[int(place * len(whole))] ^= value
    path.write_bytes(broken)
    try:
        with pytest.raises(StoreError, match=SECOND):
            Store.open(folder, check="full")
        with pytest.raises(StoreError, match=SECOND):
            StoredRows(Store.open(folder)).dots(torch.ones(1, 6))
    finally:
        path.write_bytes(whole)


def test_verify_names_every_bad_shard(folder):
    store = Store.open(folder)
    for name in ("rows-0-000000.safetensors", SECOND):
        raw = bytearray((folder / name).read_bytes())
        raw[-1] ^= 1
        (folder / name).write_bytes(raw)
    with pytest.raises(StoreError, match=r"000000.*000001"):
        store.verify()
    with pytest.raises(StoreError, match="000000"):
        store.read(torch.arange(20))


def test_a_shard_cut_after_opening_is_an_error_not_a_crash(folder):
    store = Store.open(folder, check="full")
    path = folder / SECOND
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoreError, match=f"{SECOND} has changed its size"):
        StoredRows(store).dots(torch.ones(1, 6))


def test_missing_by_the_manifest_or_by_a_gap(folder):
    last = folder / "rows-0-000002.safetensors"
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(StoreError, match=f"{last.name} is missing"):
        Store.open(folder)
    last.write_bytes(kept)
    (folder / "manifest.json").unlink()
    (folder / SECOND).unlink()
    with pytest.raises(StoreError, match=f"{SECOND} is missing"):
        Store.open(folder)


def test_doubled_under_another_name(folder):
    shutil.copy(folder / SECOND, folder / "rows-9-000000.safetensors")
    with pytest.raises(StoreError, match=r"rows-9-000000.*doubled.*rows-0-000001"):
        Store.open(folder)


def test_replaced_by_another_stores_shard_of_the_same_kind(folder, tmp_path):
    write_store(tmp_path / "other", random_rows(20, 6, seed=1), "int8")
    shutil.copy(tmp_path / "other" / SECOND, folder / SECOND)
    with pytest.raises(StoreError, match=f"{SECOND} is not the one in the manifest"):
        Store.open(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "dtype float32 instead of int8"),
        ({"dim": 7}, "dim 7 instead of 6"),
        ({"binding": Binding(**{**BINDING.__dict__, "adapter": OTHER})}, "another adapter"),
        ({"binding": Binding(**{**BINDING.__dict__, "data": OTHER})}, "another data"),
    ],
)
def test_mixed_in_from_another_store(folder, tmp_path, change, reason):
    ids = torch.arange(100, 107)
    options = {"dtype": "int8", "binding": BINDING, **change}
    rows = random_rows(7, options.pop("dim", 6))
    write_store(tmp_path / "other", rows, ids=ids, writer="x", **options)
    name = "rows-x-000000.safetensors"
    shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(StoreError, match=f"{name} belongs to another store: .*{reason}"):
        Store.open(folder)
    with pytest.raises(StoreError, match=name):
        StoreWriter(folder, BINDING, 6, "int8")


def test_overlapping_shards_are_named_both(folder, tmp_path):
    ids = torch.arange(13, 20)
    write_store(tmp_path / "other", random_rows(7, 6), "int8", ids=ids, writer="x")
    name = "rows-x-000000.safetensors"
    shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(StoreError, match=rf"{name} overlaps {SECOND}: sample 13 .*\(7 rows"):
        Store.open(folder)


def test_a_strange_file_name(folder):
    (folder / "rows-copy.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match=r"rows-copy\.safetensors has a name"):
        Store.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spec": {"version": 2}, "shards": []}'])
def test_a_damaged_manifest(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged or of another format"):
        Store.open(folder)


def test_a_manifest_with_another_checksum(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][1]["rows_sha256"] = OTHER
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=rf"{SECOND} is not the one .*\(rows_sha256"):
        Store.open(folder)


def test_no_store_there(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        Store.open(tmp_path / "nothing")
    with pytest.raises(StoreError, match="neither a manifest nor shards"):
        Store.open(tmp_path)


def test_the_writer_drops_its_own_temporary_shard_and_no_other(folder):
    own, other = folder / ".rows-0-000003.safetensors.abc", folder / ".rows-1-000000.x"
    for path in (own, other):
        path.write_bytes(b"half")
    assert Store.open(folder).n == 20
    StoreWriter(folder, BINDING, 6, "int8").close()
    assert not own.exists()
    assert other.exists()


def test_a_full_disk_stops_the_writer_and_keeps_what_is_stored(tmp_path, monkeypatch):
    from fudlr.gradients.store import shards

    real = shards._write_all

    def fail(handle, piece):
        if len(calls) >= 3 * 3:  # three pieces a shard: header, ids, rows
            raise OSError(28, "No space left on device")
        calls.append(1)
        real(handle, piece)

    calls: list[int] = []
    monkeypatch.setattr(shards, "_write_all", fail)
    rows = random_rows(40, 6)
    with pytest.raises(StoreError, match=r"rows-0-000003.*No space left"):
        write_store(tmp_path, rows, shard_rows=5)
    monkeypatch.setattr(shards, "_write_all", real)
    assert Store.open(tmp_path, check="full").n == 15
    with StoreWriter(tmp_path, BINDING, 6, "float32", shard_rows=5) as store:
        missing = store.missing(torch.arange(40))
        store.append(missing, rows[missing])
    assert torch.equal(Store.open(tmp_path).read(torch.arange(40)), rows)
