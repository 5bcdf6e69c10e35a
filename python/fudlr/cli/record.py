"""`fudlr record`: the store of an adapter that is trained already, made or refreshed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import (
    AdapterFolder,
    ConfigFile,
    RunFolder,
    Settings,
    Threads,
    of_section,
    open_run,
    set_threads,
)
from fudlr.common.errors import UsageError
from fudlr.common.terminal import say
from fudlr.config import load_config, merge


def record(
    run: RunFolder,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of the store (RUN/store).")] = None,
    adapter: AdapterFolder = None,
    refresh: Annotated[
        float | None,
        typer.Option(
            help="Share of the samples to record again for an updated adapter; 1 for all. The "
            "others' rows are taken from the earlier adapter's store, and count as stale."
        ),
    ] = None,
    stale: Annotated[
        Path | None, typer.Option(help="The earlier adapter's store (RUN/store).")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Record training samples' sketched gradients in one pass; resumes a killed recording."""
    from fudlr.gradients.store.commands import store_info
    from fudlr.record import record_run, refresh_run

    _check(refresh, out, stale)
    set_threads(threads)
    loaded = open_run(run, adapter, settings, "record")
    base = load_config(config) if config else loaded.config
    given = {f"record.{name}": value for name, value in of_section("record", settings).items()}
    options = merge(base, given).record
    asked = ""
    if refresh is None:
        folder = record_run(loaded, out, options).folder
    else:
        assert out is not None
        found = refresh_run(loaded, refresh, out, stale, options)
        folder = found.store.folder
        say(
            f"Rows of the earlier adapter, on {found.stale.measured} samples recorded again: "
            f"relative error {found.stale.error:.1%}, cosine {found.stale.cosine:.4f}"
        )
    if out is not None:
        asked += f" --store {out}"
    if adapter is not None:
        asked = f" --adapter {adapter}{asked}"
    store_info(folder)
    say(f"Next: fudlr debias {run}{asked} --objective arp --out {run}-arp")


def _check(refresh: float | None, out: Path | None, stale: Path | None) -> None:
    """Refuse options that do not go together, before anything is loaded."""
    if refresh is None and stale is not None:
        raise UsageError(
            f"the store {stale} was named as stale (--stale)",
            "no share of it is to be refreshed",
            "Give one with --refresh",
        )
    if refresh is not None and out is None:
        raise UsageError(
            "a store was to be refreshed (--refresh)",
            "no folder was named for the new one",
            "Name one with --out; the old store stays with the earlier adapter",
        )
