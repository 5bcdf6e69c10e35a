"""`fudlr compare`: rivals on the same trained adapter."""

from __future__ import annotations

from typing import Annotated

import typer

from fudlr.cli.options import (
    ConfigFile,
    Out,
    RunFolder,
    Settings,
    Threads,
    debias_options,
    open_run,
    set_threads,
)
from fudlr.common.files import claim_folder
from fudlr.common.terminal import say


def compare(
    run: RunFolder,
    *,
    out: Out,
    objective: Annotated[str | None, typer.Option(help="What should become fairer.")] = None,
    budget: Annotated[float | None, typer.Option(help="Largest share to remove.")] = None,
    rival: Annotated[
        list[str] | None, typer.Option(help="One of docs/rivals.md, repeatable; all by default.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Retrainings at a time; one a core by default.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Compare removal with its rivals on one trained adapter: a table and a Pareto plot."""
    from fudlr.compare import compare_run, print_comparison, write_comparison
    from fudlr.verify import default_processes

    set_threads(threads)
    claim_folder(out, "comparison")
    loaded = open_run(run, None, settings)
    given = {"objective": objective, "budget": budget}
    options = debias_options(loaded.config, config, settings, given)
    record = compare_run(loaded, options, out, rival, processes or default_processes())
    write_comparison(out, record)
    print_comparison(record)
    say(f"The table is in {out / 'comparison.json'}, the plot in {out / 'comparison.svg'}")
