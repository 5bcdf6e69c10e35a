"""`fudlr store info|verify|merge`, as functions with plain arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
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
    found = Store.open(folder)
    recipe, segments = found.manifest.recipe, found.manifest.segments
    said = "the last epoch alone, for the closed form"
    if recipe is not None:
        said = "a whole training, which can be unrolled: "
        said += ", ".join(f"{name} {value}" for name, value in asdict(recipe).items() if value)
    rows = {
        "folder": str(folder),
        "last epoch": f"{found.n:,} rows × {found.dim:,} {found.dtype}",
        "recorded": f"{found.steps:,} steps in {found.epochs.unique().numel()} epochs",
        "on disk": f"{_size(found.bytes)} in {len(found.shards)} shards",
        "of": said,
    }
    if found.manifest.dropout:
        shown = ", ".join(f"{name} {share:g}" for name, share in found.manifest.dropout.items())
        rows["dropout"] = f"{shown}: rows are gradients under the masks that their steps drew"
    if len(segments) > 1:
        rows["projections"] = f"{len(segments)}; the last one:"
    for name, value in found.about_projection.items():
        if value is not None:
            shown = f"{value:.1%} of the energy it was fitted to" if name == "kept" else value
            rows[f"projection: {name}"] = _short(shown)
    for name, value in found.audit.items():
        label, text = AUDIT.get(name, (name, "{:g}"))
        rows[f"audit: {label}"] = text.format(value)
    for name, value in asdict(found.binding).items():
        rows[f"made from: {name}"] = _short(value)
    _print("store", rows, console)


def store_verify(folder: Path, console: Console | None = None) -> None:
    """Compare every row in `folder` with its checksum; raises StoreError by the shards' names."""
    clock = StageClock()
    with clock.stage("verify"):
        found = Store.open(folder, check="full")
    rows = {
        "folder": str(folder),
        "rows": f"{int(found.counts.sum()):,} in {found.steps:,} steps",
        "checked": f"{_size(found.bytes)} in {len(found.shards)} shards",
        "took": duration(clock.seconds["verify"]),
    }
    _print("store: whole", rows, console)


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


def _print(title: str, rows: dict[str, str], console: Console | None) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows.items():
        table.add_row(*row)
    (console or terminal.console()).print(table)


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
