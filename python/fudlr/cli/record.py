"""`fudlr record`: the store of an adapter that is trained already, made in one pass."""

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
from fudlr.common.terminal import say
from fudlr.config import load_config, merge


def record(
    run: RunFolder,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of the store (RUN/store).")] = None,
    adapter: AdapterFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Record training samples' sketched gradients in one pass; resumes a killed recording."""
    from fudlr.gradients.store.commands import store_info
    from fudlr.record import record_run

    set_threads(threads)
    loaded = open_run(run, adapter, settings, "record")
    base = load_config(config) if config else loaded.config
    given = {f"record.{name}": value for name, value in of_section("record", settings).items()}
    store_info(record_run(loaded, out, merge(base, given).record).folder)
    asked = "" if adapter is None else f" --adapter {adapter}"
    asked += "" if out is None else f" --store {out}"
    say(f"Next: fudlr debias {run}{asked} --objective arp --out {run}-arp")
