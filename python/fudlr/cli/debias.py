"""`fudlr debias`: find the samples that cause the bias, and update the adapter."""

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
from fudlr.common.terminal import say


def debias(
    run: RunFolder,
    *,
    out: Out,
    objective: Annotated[
        str | None, typer.Option(help="A metric or a weighted sum: 'arp + 0.5*hellinger'.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Largest share to remove.")] = None,
    damping: Annotated[float | None, typer.Option(help="Absolute; chosen where absent.")] = None,
    rows: Rows = None,
    polish: Annotated[
        bool | None,
        typer.Option("--polish/--no-polish", help="Go on with whole gradients for this mask."),
    ] = None,
    steering: Annotated[
        str | None,
        typer.Option(help="Steer, which is no removal: line_search, soft, signed or direct."),
    ] = None,
    force: Annotated[
        bool | None, typer.Option("--force", help="Go on where a signature of failure refuses.")
    ] = None,
    adapter: AdapterFolder = None,
    store: Annotated[
        Path | None, typer.Option(help="The store to answer from, instead of the run's own.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Find the samples that cause the bias, update the adapter, report before and after."""
    from fudlr.debias import debias as debias_samples
    from fudlr.output.results import check_result_folder, write_result
    from fudlr.report import print_summary

    set_threads(threads)
    check_result_folder(out)
    loaded = open_run(run, adapter, settings)
    given = {
        "objective": objective,
        "budget": budget,
        "damping": damping,
        "rows": rows,
        "polish": polish,
        "force": force,
        "steering": steering,
        "store": str(store) if store else None,
    }
    result = debias_samples(loaded, debias_options(loaded.config, config, settings, given))
    write_result(out, result)
    print_summary(result.summary)
    say(f"Adapter, mask, summary and report are in {out}. Proof: fudlr verify {out}")
