"""Merged stores hold the rows of all, bit by bit, and only those that belong together."""

from __future__ import annotations

import io

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.gradients import Projection
from fudlr.gradients.store import (
    Binding,
    Store,
    StoredRows,
    StoreError,
    StoreWriter,
    joint_binding,
    merge,
)
from fudlr.gradients.store.commands import store_info, store_merge, store_verify
from rich.console import Console
from store_cases import BINDING, DTYPES, OTHER, append_all, random_rows, whole, write_store


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_all_bit_by_bit(tmp_path, dtype):
    rows = random_rows(23, 9)
    entire = write_store(tmp_path / "whole", rows, dtype)
    write_store(tmp_path / "a", rows[:10], dtype)
    write_store(tmp_path / "b", rows[10:], dtype, ids=torch.arange(10, 23))
    store = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert torch.equal(store.read(torch.arange(23)), entire.read(torch.arange(23)))
    assert store.binding == BINDING
    assert (store.steps, store.epochs.unique().tolist()) == (5, [1])
    # Steps of 5, 5 and of 5, 5, 3 samples, with means 0, 1 and 0, 1, 2.
    assert torch.allclose(store.mean_gradient(), torch.full((3,), (5 + 5 + 6) / 23))
    vectors = torch.randn(2, 9)
    found = StoredRows(store).gram_product(vectors)
    assert torch.allclose(found, StoredRows(entire).gram_product(vectors), rtol=1e-5)


def test_last_epochs_alone_are_merged(tmp_path):
    rows = random_rows(10, 4)
    with StoreWriter(tmp_path / "a", "course", 3, "float32") as writer:
        writer.use(whole(4))
        append_all(writer, -rows, torch.arange(10), epoch=1)
        append_all(writer, rows, torch.arange(10), epoch=2)
        writer.finish(BINDING)
    store = merge([tmp_path / "a"], tmp_path / "out")
    assert (store.n, store.steps) == (10, 2)
    assert torch.equal(store.read(torch.arange(10)), rows)
    assert not store.whole_training


def test_later_samples_with_their_own_data(tmp_path):
    later = Binding(**{**BINDING.__dict__, "data": OTHER, "order": OTHER})
    write_store(tmp_path / "a", random_rows(6, 4))
    write_store(tmp_path / "b", random_rows(6, 4), ids=torch.arange(10, 16), binding=later)
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(StoreError, match="another data, another order"):
        merge(folders, tmp_path / "out")
    joint = merge(folders, tmp_path / "out", combine_data=True)
    assert joint.binding.differences(BINDING) == ["data", "order"]
    assert joint.binding == joint_binding([BINDING, later])


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_another_model_or_adapter_is_never_merged(tmp_path, name):
    other = Binding(**{**BINDING.__dict__, name: OTHER})
    write_store(tmp_path / "a", random_rows(6, 4))
    write_store(tmp_path / "b", random_rows(6, 4), ids=torch.arange(10, 16), binding=other)
    with pytest.raises(StoreError, match=f"another {name}"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out", combine_data=True)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused(tmp_path):
    write_store(tmp_path / "a", random_rows(6, 4))
    write_store(tmp_path / "b", random_rows(6, 4), ids=torch.arange(5, 11))
    with pytest.raises(StoreError, match="1 samples are in two of them, sample 5 the first"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    write_store(tmp_path / "c", random_rows(6, 5), ids=torch.arange(10, 16))
    write_store(tmp_path / "d", random_rows(6, 4), "int8", ids=torch.arange(10, 16))
    for name, said in (("c", "another projection"), ("d", "another dtype")):
        with pytest.raises(StoreError, match=said):
            merge([tmp_path / "a", tmp_path / name], tmp_path / "out")
    with pytest.raises(UsageError, match="there already"):
        merge([tmp_path / "a"], tmp_path / "b")
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([], tmp_path / "out")


def test_rows_of_different_projections_are_refused(tmp_path):
    shapes = {"x.lora_A.w": (2, 6), "x.lora_B.w": (5, 2)}
    for seed in (0, 1):
        wide = {"x.lora_A.w": torch.eye(6)[seed : seed + 1], "x.lora_B.w": torch.eye(5)[:1]}
        projection = Projection(shapes, wide)
        with StoreWriter(tmp_path / f"{seed}", "course", 3, "float32") as writer:
            writer.use(projection)
            ids = torch.arange(5) + 10 * seed
            append_all(writer, random_rows(5, projection.dim), ids)
            writer.finish(BINDING)
        assert Store.open(tmp_path / f"{seed}").projection().fingerprint == projection.fingerprint
    with pytest.raises(StoreError, match="another projection"):
        merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out")


def test_the_commands_say_what_a_store_is(tmp_path):
    store = write_store(tmp_path / "a", random_rows(23, 9), "int8")
    store.save_audit({"energy": 0.875, "samples": 8.0})
    said = io.StringIO()
    console = Console(file=said, width=200)
    store_info(tmp_path / "a", console)
    store_merge([tmp_path / "a"], tmp_path / "b", console=console)
    store_verify(tmp_path / "b", console)
    text = said.getvalue()
    assert text.count("23 rows × 9 int8") == 2
    assert text.count("87.5% of all gradients' squares") == 2
    assert "the last epoch alone, for the closed form" in text
    assert BINDING.adapter[:16] in text
    assert "23 in 5 steps" in text
