"""`fudlr record`: the store of an adapter that is trained already."""

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
    say,
    set_threads,
)
from fudlr.config import load_config, merge
from fudlr.record import record_run
from fudlr.run import load_run
from fudlr.store.commands import store_info


def record(
    run: RunFolder,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of the store (RUN/store).")] = None,
    adapter: AdapterFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Record every training sample's sketched gradient in one pass; resumes a killed recording."""
    set_threads(threads)
    loaded = load_run(run, adapter)
    base = load_config(config) if config else loaded.config
    given = {f"record.{name}": value for name, value in of_section("record", settings).items()}
    options = merge(base, given).record
    store = record_run(loaded, out, options)
    store_info(store.folder)
    say(f"Next: fudlr debias {run} --objective arp --out {run}-arp")
