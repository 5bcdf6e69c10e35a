"""`fudlr grouped`: a mask and an adapter for every group or set of users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import (
    AdapterFolder,
    ConfigFile,
    Out,
    Rows,
    RunFolder,
    Settings,
    Threads,
    debias_options,
    open_run,
    set_threads,
)
from fudlr.common.files import check_replaceable
from fudlr.common.terminal import say


def grouped(
    run: RunFolder,
    *,
    out: Out,
    by: Annotated[
        str | None, typer.Option(help="User column, such as occupation: a set for each group.")
    ] = None,
    users: Annotated[
        list[Path] | None, typer.Option(help="Text file with a user id a line: a set of its own.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="A metric or a weighted sum: 'arp + 0.5*hellinger'.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Largest share to remove, each set.")] = None,
    rows: Rows = None,
    adapter: AdapterFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Find a mask and an adapter for each group of users, from one gradient pass and one solve."""
    from fudlr.groups import (
        debias_groups,
        print_grouped,
        sets_of_column,
        sets_of_files,
        write_grouped,
    )

    set_threads(threads)
    check_replaceable(out, "groups")
    loaded = open_run(run, adapter, settings)
    sets = sets_of_column(loaded.interactions, by) if by else []
    sets += sets_of_files(loaded.interactions, users or [])
    given = {"objective": objective, "budget": budget, "rows": rows}
    options = debias_options(loaded.config, config, settings, given)
    record = write_grouped(out, debias_groups(loaded, sets, options))
    print_grouped(record)
    say(f"Figures, masks and adapters are in {out}")
