from __future__ import annotations

import io

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.gradients.store import (
    Binding,
    PrincipalAccumulator,
    Store,
    StoreError,
    StoreWriter,
    merge,
    random_projection,
)
from fudlr.gradients.store.audit import audit_rows, save_audit
from fudlr.gradients.store.commands import store_info, store_merge, store_verify
from rich.console import Console
from store_cases import BINDING, DTYPES, OTHER, random_rows, write_store

LATER = Binding(**{**BINDING.__dict__, "data": OTHER, "order": OTHER})


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_is_what_one_writer_would_have_written(tmp_path, dtype):
    rows, ids = random_rows(30, 9), torch.randperm(30)
    for k in range(3):
        part = ids[k * 10 : k * 10 + 10]
        write_store(tmp_path / f"{k}", rows[part], dtype, ids=part)
    out = merge([tmp_path / f"{k}" for k in range(3)], tmp_path / "out")
    alone = write_store(tmp_path / "alone", rows, dtype)
    assert out.content_sha256() == alone.content_sha256()
    assert Store.open(tmp_path / "out", BINDING, check="full").n == 30


def test_stores_that_do_not_belong_together(tmp_path):
    rows = random_rows(10, 4)
    write_store(tmp_path / "a", rows)
    write_store(tmp_path / "double", rows[:3], ids=torch.arange(7, 10))
    write_store(tmp_path / "adapter", rows, ids=torch.arange(10, 20),
                binding=Binding(**{**BINDING.__dict__, "adapter": OTHER}))  # fmt: skip
    write_store(tmp_path / "later", rows, ids=torch.arange(10, 20), binding=LATER)
    out = tmp_path / "out"
    with pytest.raises(StoreError, match=r"overlaps .*sample 7 .*\(3 rows"):
        merge([tmp_path / "a", tmp_path / "double"], out)
    for combine in (False, True):
        with pytest.raises(StoreError, match="another adapter"):
            merge([tmp_path / "a", tmp_path / "adapter"], out, combine_data=combine)
    with pytest.raises(StoreError, match="another data, another order"):
        merge([tmp_path / "a", tmp_path / "later"], out)
    assert not out.exists()
    joint = merge([tmp_path / "a", tmp_path / "later"], out, combine_data=True)
    assert joint.n == 20
    assert joint.spec.binding.differences(BINDING) == ["data", "order"]
    with pytest.raises(UsageError, match="there already"):
        merge([tmp_path / "a"], out)
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([], tmp_path / "none")


def test_a_damaged_part_leaves_nothing(tmp_path):
    store = write_store(tmp_path / "a", random_rows(10, 4))
    raw = bytearray(store.shards[0].path.read_bytes())
    raw[-1] ^= 1
    store.shards[0].path.write_bytes(raw)
    with pytest.raises(StoreError, match="rows-0-000000"):
        merge([tmp_path / "a"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_the_projection_travels_with_the_store(tmp_path):
    shapes = {"x.lora_A.weight": (2, 6), "x.lora_B.weight": (8, 2)}
    projection = random_projection(shapes, 4, seed=1)
    rows = torch.randn(5, projection.dim)
    with StoreWriter(tmp_path / "a", BINDING, projection.dim, projection=projection) as store:
        store.append(torch.arange(5), rows)
    found = merge([tmp_path / "a"], tmp_path / "out").projection()
    assert found is not None
    assert found.fingerprint == projection.fingerprint
    other = random_projection(shapes, 4, seed=2)
    with pytest.raises(StoreError, match="another projection"):
        StoreWriter(tmp_path / "a", BINDING, projection.dim, projection=other)
    with pytest.raises(UsageError, match="it makes 8"):
        StoreWriter(tmp_path / "b", BINDING, 9, projection=projection)
    other.save(tmp_path / "a" / "projection.safetensors")
    with pytest.raises(StoreError, match=r"projection\.safetensors is not the projection"):
        Store.open(tmp_path / "a", check="full")


def test_info_says_what_projection_and_rows_kept(tmp_path):
    shapes = {"x.lora_A.weight": (2, 6), "x.lora_B.weight": (8, 2)}
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(9, 28, generator=generator)
    accumulator = PrincipalAccumulator(shapes)
    accumulator.add_rows(gradients)
    projection = accumulator.fit(dims=3)
    rows = projection.project(gradients)
    with StoreWriter(tmp_path / "a", BINDING, projection.dim, projection=projection) as store:
        store.append(torch.arange(9), rows)
    figures = audit_rows(gradients, rows, projection, 0.1)
    save_audit(tmp_path / "a", BINDING, figures)
    console = Console(file=io.StringIO(), width=100)
    store_info(tmp_path / "a", console)
    text = " ".join(console.file.getvalue().replace("│", " ").split())
    assert f"projection: kept {projection.kept:.1%} of its matrices' energy" in text
    assert f"energy kept {projection.energy_kept(gradients):.1%} of all" in text
    assert f"influences kept {figures['influences']:.1%} of the squares of probe" in text
    assert "None" not in text


def test_commands_print_tables(tmp_path):
    for k in (0, 1):
        write_store(tmp_path / f"{k}", random_rows(9, 4), ids=torch.arange(9) + 9 * k)
    console = Console(file=io.StringIO(), width=100)
    store_merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out", console=console)
    store_info(tmp_path / "0", console)
    store_verify(tmp_path / "out", console)
    text = console.file.getvalue()
    assert "18 × 4 float32" in text
    assert BINDING.adapter[:16] in text
    assert "store: whole" in text
