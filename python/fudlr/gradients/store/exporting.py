"""A store's rows in forms that others read: bergson's index, Parquet, Hugging Face `datasets`."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from fudlr.common.errors import UsageError
from fudlr.common.files import atomic_folder, check_replaceable, write_json, write_table
from fudlr.gradients.store.bergson import sketch_sizes, write_index
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.shards import decode

KIND = "exported rows"


def write_parquet(store: Store, out: Path) -> None:
    """Write the last epoch's rows as Parquet files: `sample_id`, and `row` in float32. `about.json`
    has the columns of each module, and what the rows are bound to."""
    with atomic_folder(out, KIND) as folder:
        _write_parts(store, folder)
        about = {"projection": store.about_projection, "binding": asdict(store.binding)}
        write_json(folder / "about.json", {"columns": dict(sketch_sizes(store)), **about})


def write_dataset(store: Store, out: Path) -> None:
    """Write the same rows as a folder that `datasets.load_from_disk` opens."""
    library: Any = importlib.import_module("datasets")
    with tempfile.TemporaryDirectory(dir=out.absolute().parent) as parts:
        found = [str(path) for path in _write_parts(store, Path(parts))]
        with atomic_folder(out, KIND) as folder:
            made = library.Dataset.from_parquet(found, cache_dir=parts)
            made.save_to_disk(str(folder))


def _write_parts(store: Store, folder: Path) -> list[Path]:
    paths = []
    for number, window in enumerate(store.windows()):
        rows = decode(*window.read())
        table = {"sample_id": store.ids[window.places].numpy(), "row": rows.numpy()}
        paths.append(folder / f"rows-{number:06d}.parquet")
        write_table(paths[-1], pl.DataFrame(table))
    return paths


FORMS: dict[str, tuple[Callable[[Store, Path], None], str]] = {
    "bergson": (write_index, "index"),
    "parquet": (write_parquet, KIND),
    "datasets": (write_dataset, KIND),
}
"""What writes a form, and the kind of its folder."""


def export_store(folder: Path | str, form: str, out: Path | str) -> Store:
    """Write the last epoch of the store in `folder` into the new folder `out`, in one of `FORMS`.

    Raises:
        UsageError: An unknown form, `datasets` is not installed, or `out` may not be replaced.
        StoreError: The store is damaged.
    """
    out, asked = Path(out), f"the store {folder} was to be exported as {form}"
    if form not in FORMS:
        known = ", ".join(FORMS)
        raise UsageError(asked, "no such form is written", f"Choose one of {known}")
    if form == "datasets" and importlib.util.find_spec("datasets") is None:
        raise UsageError(asked, "`datasets` is not installed", "Install it, or take parquet")
    write, kind = FORMS[form]
    check_replaceable(out, kind)
    store = Store.open(folder)
    write(store, out)
    return store
