"""`fudlr sweep`: λ's and budgets over one solve."""

from __future__ import annotations

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
from fudlr.common.files import claim_folder
from fudlr.common.terminal import say


def sweep(
    run: RunFolder,
    *,
    out: Out,
    objective: Annotated[
        str | None, typer.Option(help="A metric or a weighted sum: 'arp + 0.5*hellinger'.")
    ] = None,
    lambda_fair: Annotated[
        str | None, typer.Option(help="Weights of the objective, such as 1,2; as configured.")
    ] = None,
    lambda_acc: Annotated[
        str | None, typer.Option(help="Weights of the loss; 0, .5, 1 and 2 times the configured.")
    ] = None,
    lambda_spa: Annotated[
        str | None, typer.Option(help="Prices of a removal; as configured.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Largest shares; .2, .5 and 1 times the configured.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Update and measure each.")] = False,
    retrain: Annotated[int, typer.Option(min=0, help="Retrain the N best.")] = 0,
    rows: Rows = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Retrainings at a time; one a core by default.")
    ] = None,
    adapter: AdapterFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Sweep λ's and budgets over one solve: predicted, measured and retrained, with a plot."""
    from fudlr.sweep import Grid, print_sweep, sweep_run, write_sweep
    from fudlr.sweep.grid import parse_list
    from fudlr.verify import default_processes

    lists = {
        "lambda_fair": lambda_fair,
        "lambda_acc": lambda_acc,
        "lambda_spa": lambda_spa,
        "budget": budget,
    }
    given_lists = {name: parse_list(name, text) for name, text in lists.items() if text is not None}
    set_threads(threads)
    claim_folder(out, "sweep")
    loaded = open_run(run, adapter, settings)
    given = {"objective": objective, "rows": rows}
    options = debias_options(loaded.config, config, settings, given)
    record = sweep_run(
        loaded,
        Grid.around(options, **given_lists),
        options,
        out,
        measure=measure,
        retrained=retrain,
        processes=processes or default_processes(),
    )
    write_sweep(out, record)
    print_sweep(record)
    say(f"The table is in {out / 'sweep.json'} and .parquet, the plot in {out / 'sweep.svg'}")
