"""Every kind of bad file is refused by its name, with a remedy that works."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from fudlr.common.digest import digest
from fudlr.gradients.store import Store, StoredRows, StoreError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import DTYPES, OTHER, random_rows, write_store

SECOND = "rows-000001.safetensors"


@pytest.fixture
def folder(tmp_path):
    write_store(tmp_path / "store", random_rows(20, 6), "int8", shard_rows=5)
    return tmp_path / "store"


def test_truncated_anywhere_or_lengthened(folder):
    path = folder / SECOND
    whole = path.read_bytes()
    for size in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=f"{SECOND} is truncated"):
            Store.open(folder)
    path.write_bytes(whole + b"\0")
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
        write_store(folder, random_rows(20, 6), dtype, shard_rows=5)
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
        with pytest.raises(StoreError, match=SECOND):
            Store.open(folder).step(1)
    finally:
        path.write_bytes(whole)


def test_verify_names_every_bad_shard(folder):
    store = Store.open(folder)
    for name in ("rows-000000.safetensors", SECOND):
        raw = bytearray((folder / name).read_bytes())
        raw[-1] ^= 1
        (folder / name).write_bytes(raw)
    with pytest.raises(StoreError, match=r"000000.*000001"):
        store.verify()


def test_a_shard_cut_after_opening_is_an_error_not_a_crash(folder):
    store = Store.open(folder, check="full")
    path = folder / SECOND
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(StoreError, match=f"{SECOND} has changed its size"):
        StoredRows(store).dots(torch.ones(1, 6))
    rows = Store.step(store, 0).rows
    os.truncate(folder / "rows-000000.safetensors", 10)
    assert int(rows.sum()) == int(rows.sum())  # what was read is no view of the file


def test_missing_renamed_and_replaced(folder, tmp_path):
    path = folder / SECOND
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(StoreError, match=f"{SECOND} is missing"):
        Store.open(folder)
    shutil.copy(folder / "rows-000000.safetensors", path)
    with pytest.raises(StoreError, match=f"{SECOND} is not the one.*doubled"):
        Store.open(folder)
    write_store(tmp_path / "other", random_rows(20, 6, seed=1), "int8", shard_rows=5)
    shutil.copy(tmp_path / "other" / SECOND, path)
    with pytest.raises(StoreError, match=f"{SECOND} is not the one in the manifest"):
        Store.open(folder)
    path.write_bytes(kept)
    Store.open(folder, check="full")


@pytest.mark.parametrize("name", [SECOND, "manifest.json"])
def test_a_pipe_is_refused_and_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(StoreError, match=f"{name} is no regular file"):
        Store.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', "[" * 10**5])
def test_a_damaged_manifest(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged or of another format"):
        Store.open(folder)


def change(folder, edit, *, seal):
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    edit(value)
    if seal:
        del value["sha256"]
        value["sha256"] = digest(value)
    path.write_text(json.dumps(value))


def test_a_changed_manifest_does_not_match_its_checksum(folder):
    change(folder, lambda value: value["binding"].update(adapter=OTHER), seal=False)
    with pytest.raises(StoreError, match=r"manifest\.json is corrupted"):
        Store.open(folder)


@pytest.mark.parametrize("name", ["../rows-000001.safetensors", "/etc/hostname", "rows-000003"])
def test_a_shard_outside_of_the_store_is_refused(folder, name):
    shutil.copy(folder / SECOND, folder.parent / SECOND)
    change(folder, lambda value: value["shards"][1].update(name=name), seal=True)
    with pytest.raises(StoreError, match="lists a shard that no writer names so"):
        Store.open(folder)


def test_a_store_of_an_earlier_format_is_refused_with_what_makes_it_anew(folder):
    manifest = {"spec": {"version": 1, "dim": 6}, "rows": 20, "shards": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"version 1 .*Remove that folder .*fudlr record RUN"):
        Store.open(folder)


def test_the_remedy_works(folder):
    """Remove the folder, and record again."""
    (folder / SECOND).write_bytes(b"")
    with pytest.raises(StoreError, match=r"remove the folder store and record again"):
        Store.open(folder)
    shutil.rmtree(folder)
    assert write_store(folder, random_rows(20, 6)).n == 20


def test_no_store_there(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        Store.open(tmp_path / "nothing")
    with pytest.raises(StoreError, match="no manifest"):
        Store.open(tmp_path)
