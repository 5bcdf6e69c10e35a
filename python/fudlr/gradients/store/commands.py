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


def store_info(folder: Path, console: Console | None = None) -> None:
    """Print what the store in `folder` is; opens it, so that a bad one is refused by name."""
    store = Store.open(folder)
    info = store.info()
    table = _table("store")
    table.add_row("folder", str(folder))
    table.add_row("rows", f"{info['rows']:,} × {info['dim']:,} {info['dtype']}")
    table.add_row("on disk", f"{_size(info['bytes'])} in {info['shards']} shards")
    table.add_row("writers", ", ".join(info["writers"]) or "none yet")
    for name, value in info["projection"].items():
        if name == "kept" and value is not None:
            said = f"{value:.1%} of its matrices' energy, on what it was fitted to"
            table.add_row("projection: kept", said)
        elif value is not None:
            table.add_row(f"projection: {name}", _short(value))
    for name, value in info["kept"].items():
        table.add_row(f"kept: {name}", f"{value:.1%}")
    for name, value in (info["audit"] or {}).items():
        table.add_row(*_audited(name, value))
    if store.spec.stale is not None:
        table.add_row("stale rows", stale_text(store))
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
    table.add_row("rows", f"{store.n:,}")
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


_AUDIT = {
    "energy": ("energy kept", "{:.1%} of all gradients' squares"),
    "influences": ("influences kept", "{:.1%} of the squares of probe influences"),
    "cosine": ("rows' cosine", "{:.4f} with rows at the adapter itself"),
    "error": ("rows' error", "{:.1%} of rows at the adapter itself"),
}


def stale_text(store: Store) -> str:
    """How many of a store's rows are stale, and how far off; empty where none is."""
    stale = store.spec.stale
    if stale is None:
        return ""
    kept = ""
    if stale.influences is not None:
        kept = f"; rows like them keep {stale.influences:.1%} of the squares of probe influences"
    return (
        f"{stale.rows:,} of {store.n:,} ({stale.rows / store.n:.0%}), of an earlier adapter: "
        f"relative error {stale.error:.1%}, cosine {stale.cosine:.4f}, measured on "
        f"{stale.measured:,} samples recorded again{kept}"
    )


def _audited(name: str, value: float) -> tuple[str, str]:
    label, text = _AUDIT.get(name, (name, "{:g}"))
    return f"audit: {label}", text.format(value)


def _short(value: object) -> str:
    """A fingerprint's first digits are enough for a person."""
    return f"{value[:16]}…" if isinstance(value, str) and len(value) == 64 else f"{value}"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
