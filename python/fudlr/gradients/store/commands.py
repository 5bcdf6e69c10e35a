"""`fudlr store info|verify|merge`, as functions with plain arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fudlr.common import terminal
from fudlr.common.progress import StageClock, duration
from fudlr.gradients.store.merging import merge
from fudlr.gradients.store.reader import Store

AUDIT = {
    "energy": ("energy kept", "{:.1%} of all gradients' squares"),
    "influences": ("influences kept", "{:.1%} of the squares of probe influences"),
    "cosine": ("rows' cosine", "{:.4f} with rows at the adapter itself"),
    "error": ("rows' error", "{:.1%} of rows at the adapter itself"),
}


def store_info(folder: Path, console: Console | None = None) -> None:
    """Print what the store in `folder` is; opens it, so that a bad one is refused by name."""
    info = Store.open(folder).info()
    table = _table("store")
    table.add_row("folder", str(folder))
    table.add_row("last epoch", f"{info['rows']:,} rows × {info['dim']:,} {info['dtype']}")
    table.add_row("recorded", f"{info['steps']:,} steps in {info['epochs']} epochs")
    table.add_row("on disk", f"{_size(info['bytes'])} in {info['shards']} shards")
    training = info["training"]
    said = "the last epoch alone, for the closed form"
    if training is not None:
        said = "a whole training, which can be unrolled: "
        said += ", ".join(f"{name} {value}" for name, value in training.items() if value)
    table.add_row("of", said)
    if info["projections"] > 1:
        table.add_row("projections", f"{info['projections']}; the last one:")
    for name, value in info["projection"].items():
        if name == "kept" and value is not None:
            table.add_row("projection: kept", f"{value:.1%} of the energy it was fitted to")
        elif value is not None:
            table.add_row(f"projection: {name}", _short(value))
    for name, value in info["audit"].items():
        label, text = AUDIT.get(name, (name, "{:g}"))
        table.add_row(f"audit: {label}", text.format(value))
    for name, value in info["binding"].items():
        table.add_row(f"made from: {name}", _short(value))
    (console or terminal.console()).print(table)


def store_verify(folder: Path, console: Console | None = None) -> None:
    """Compare every row in `folder` with its checksum; raises StoreError by the shards' names."""
    clock = StageClock()
    with clock.stage("verify"):
        store = Store.open(folder, check="full")
    table = _table("store: whole")
    table.add_row("folder", str(folder))
    table.add_row("rows", f"{int(store.counts.sum()):,} in {store.steps:,} steps")
    table.add_row("checked", f"{_size(store.bytes)} in {len(store.shards)} shards")
    table.add_row("took", duration(clock.seconds["verify"]))
    (console or terminal.console()).print(table)


def store_merge(
    folders: Sequence[Path],
    out: Path,
    *,
    combine_data: bool = False,
    console: Console | None = None,
) -> None:
    """Merge the stores in `folders` into the new store `out`, and say what it is."""
    with StageClock().stage("merge"):
        merge(folders, out, combine_data=combine_data)
    store_info(out, console)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _short(value: object) -> str:
    """A digest's first digits are enough for a person."""
    return f"{value[:16]}…" if isinstance(value, str) and len(value) == 64 else f"{value}"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
