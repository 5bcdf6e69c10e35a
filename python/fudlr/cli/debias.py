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
    quick: Annotated[
        bool, typer.Option("--quick", help="No trade-off curve and no held-out users.")
    ] = False,
    force: Annotated[
        bool | None, typer.Option("--force", help="Go on where a diagnostic refuses.")
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
    from fudlr.debias import CURVE
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
        "force": force,
        "store": str(store) if store else None,
    }
    options = debias_options(loaded.config, config, settings, given)
    curve = () if quick else CURVE
    result = debias_samples(loaded, options, curve=curve, heldout=not quick)
    write_result(out, result)
    print_summary(result.summary)
    if result.mask.any():
        say(f"Adapter, mask, summary and report are in {out}. Proof: fudlr verify {out}")
    else:
        say(
            f"Nothing was removed: the adapter in {out} is the trained one, and the warnings above "
            "and the report there say why."
        )
