"""bergson's index: written so that bergson opens it, read as it writes it, refused by name."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.gradients import MemoryRows, Projection
from fudlr.gradients.store import Store, StoredRows, StoreError, StoreWriter
from fudlr.gradients.store.bergson import BergsonIndex, IndexRows, compare, is_index, write_index
from fudlr.gradients.store.exporting import export_store
from fudlr.query.answers import least
from store_cases import BINDING, DTYPES, append_all, random_rows, write_store

SHAPES = {
    "base_model.model.layers.0.q.lora_A.weight": (2, 6),
    "base_model.model.layers.0.q.lora_B.weight": (5, 2),
    "base_model.model.layers.1.q.lora_A.weight": (2, 4),
}
D, N = 30, 23


def written(folder, rows, *, dtype="float32", order=(2, 0, 1), **more):
    """An index as bergson 2.5.1 writes one, its modules in another order than the adapter's."""
    folder.mkdir()
    names, sizes = list(SHAPES), [a * b for a, b in SHAPES.values()]
    parts = rows.split(sizes, 1)
    found = torch.cat([parts[at] for at in order], 1)
    raw = found.to(getattr(torch, dtype)).contiguous().view(torch.uint8).numpy()
    (folder / "gradients.bin").write_bytes(raw.tobytes())
    said = [name.removeprefix("base_model.").replace("weight", "default") for name in names]
    modules = {said[at]: sizes[at] for at in order}
    about = {"num_items": len(rows), "num_grads": len(rows), "grad_sizes": modules}
    info = {"attribute_tokens": False, **about, "base_dtype": dtype, **more}
    (folder / "info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_index_has_the_products_of_its_rows(tmp_path, dtype):
    rows = torch.randn(N, D).to(getattr(torch, dtype)).float()
    index = BergsonIndex(written(tmp_path / "i", rows, dtype=dtype))
    order = torch.randperm(N)[:9]
    found = IndexRows(index, order, index.columns(SHAPES))
    exact = MemoryRows(rows[order])
    v, w = torch.randn(3, D), torch.randn(2, 9)
    for name, given in (("dots", (v,)), ("sum", (w,)), ("gram_product", (v, w[0]))):
        torch.testing.assert_close(getattr(found, name)(*given), getattr(exact, name)(*given))
    assert torch.equal(found.take(torch.tensor([4, 2])), rows[order[[4, 2]]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exported_store_is_opened_with_its_ids(tmp_path, dtype):
    ids = torch.randperm(50) * 3
    store = write_store(tmp_path / "store", random_rows(50, 130), dtype, ids=ids, shard_rows=8)
    write_index(store, tmp_path / "index")
    index = BergsonIndex(tmp_path / "index")
    assert index.ids.tolist() == sorted(ids.tolist())
    assert index.modules == {"x.lora_A.w": 130}
    order = ids[:20]
    assert torch.equal(index.read(order), store.read(order))  # to the bit
    v = torch.randn(2, 130)
    torch.testing.assert_close(StoredRows(index).dots(v), StoredRows(store).dots(v))


def test_bergson_finds_the_same_top_100(tmp_path):
    """With the package itself: it opens ours, and we open what it wrote."""
    bergson = pytest.importorskip("bergson", reason="bergson is not installed")
    from bergson.data import create_index

    shapes = {f"layers.{at}.lora_A.weight": (2, 8) for at in range(4)}
    sizes = {name.removesuffix(".weight"): 16 for name in shapes}
    rows, queries = random_rows(400, 64), torch.randn(5, 64)
    with StoreWriter(tmp_path / "store", "course", 3, "int8") as writer:
        writer.use(Projection(shapes, {name: torch.eye(8) for name in shapes}))
        append_all(writer, rows, torch.randperm(400))
        writer.finish(BINDING)
    store = Store.open(tmp_path / "store")
    write_index(store, tmp_path / "ours")
    theirs = create_index(tmp_path / "theirs", 400, sizes, np.float32)
    theirs[:] = rows.numpy()
    theirs.flush()
    asked = dict(zip(sizes, queries.split(16, 1), strict=True))
    for name in ("processor_config.yaml", "normalizers.pth", "hessians.pth", "hessians_eigen.pth"):
        (tmp_path / "theirs" / name).write_bytes((tmp_path / "ours" / name).read_bytes())
    opened = BergsonIndex(tmp_path / "theirs")
    for folder, mine in (
        ("ours", StoredRows(store)),
        ("theirs", IndexRows(opened, opened.ids, opened.columns(shapes))),
    ):
        found = bergson.Attributor(tmp_path / folder).search(asked, 100).indices
        dots = mine.dots(queries)
        assert torch.equal(torch.stack([least(-dot, 100) for dot in dots.T]), found)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            {**SHAPES, "base_model.model.layers.2.q.lora_A.weight": (1, 1)},
            "no rows of .*2.q",
        ),
        (dict(list(SHAPES.items())[:2]), "also of .*layers.1.q"),
        ({**SHAPES, list(SHAPES)[1]: (5, 3)}, r"10 columns for .*lora_B.* of 5 × 3"),
    ],
)
def test_an_index_of_another_model_is_refused_by_name(tmp_path, shapes, words):
    index = BergsonIndex(written(tmp_path / "i", torch.randn(N, D)))
    with pytest.raises(StoreError, match=f"another model's.*{words}"):
        index.columns(shapes)


def test_rows_that_are_no_gradients_of_the_samples_are_refused(tmp_path):
    own = torch.randn(3, D)
    ids = torch.tensor([4, 9, 11])
    compare(tmp_path, ids, own.bfloat16().float(), own)
    with pytest.raises(StoreError, match=r"sample 9 has the cosine 1.000 .* and 2 times"):
        compare(tmp_path, ids, own * torch.tensor([[1.0], [2.0], [1.0]]), own)
    with pytest.raises(StoreError, match="sample 4 has the cosine -"):
        compare(tmp_path, ids, -own, own)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"attribute_tokens": True}, "single tokens"),
        ({"base_dtype": "int8"}, "as int8"),
        ({"num_grads": 2}, f"{4 * N * D} bytes where {4 * 2 * D} belong"),
        ({"grad_sizes": "none"}, "grad_sizes: "),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path, info, words):
    folder = written(tmp_path / "i", torch.randn(N, D), **info)
    with pytest.raises(StoreError, match=words):
        BergsonIndex(folder)


def test_damage_is_refused(tmp_path):
    folder = written(tmp_path / "i", torch.randn(N, D))
    index = BergsonIndex(folder)
    with pytest.raises(StoreError, match="1 of 2 samples are not in it, 99 first"):
        index.places(torch.tensor([3, 99]))
    (folder / "gradients.bin").write_bytes(b"1234")
    with pytest.raises(StoreError, match="cut short"):
        StoredRows(index).dots(torch.randn(1, D))
    (folder / "info.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        BergsonIndex(folder)
    with pytest.raises(StoreError, match="No such file"):
        BergsonIndex(tmp_path)
    assert is_index(folder)
    assert not is_index(tmp_path)


@pytest.mark.parametrize("form", ["parquet", "datasets"])
def test_rows_are_exported_with_their_ids(tmp_path, form):
    ids = torch.randperm(50) * 3
    store = write_store(tmp_path / "store", random_rows(50, 130), "int8", ids=ids)
    export_store(tmp_path / "store", form, tmp_path / "out")
    if form == "parquet":
        found = pl.read_parquet(tmp_path / "out" / "*.parquet")
        about = json.loads((tmp_path / "out" / "about.json").read_text())
        assert about["columns"] == {"x.lora_A.w": 130}
        assert about["binding"]["model"] == BINDING.model
    else:
        library = pytest.importorskip("datasets", reason="datasets is not installed")
        found = library.load_from_disk(str(tmp_path / "out")).to_polars()
    names = torch.tensor(found["sample_id"].to_list())
    assert sorted(names.tolist()) == sorted(ids.tolist())
    assert torch.equal(torch.tensor(found["row"].to_list()), store.read(names))


def test_an_unknown_form_or_a_strangers_folder_is_refused(tmp_path):
    write_store(tmp_path / "store", random_rows(10, 4))
    with pytest.raises(UsageError, match="bergson, parquet, datasets"):
        export_store(tmp_path / "store", "csv", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("")
    with pytest.raises(UsageError, match="out"):
        export_store(tmp_path / "store", "bergson", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
