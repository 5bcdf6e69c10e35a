"""Requests: `fudlr debias`, `forget`, `sweep`, `grouped` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import (
    AdapterFolder,
    Budget,
    ConfigFile,
    Damping,
    Device,
    Force,
    Objective,
    Out,
    Processes,
    Rows,
    RunFolder,
    Settings,
    StoreOption,
    Threads,
    debias_options,
    given,
    of_section,
    open_run,
)
from fudlr.common.terminal import say


def debias(
    run: RunFolder,
    *,
    out: Out,
    objective: Objective = None,
    budget: Budget = None,
    damping: Damping = None,
    rows: Rows = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="No trade-off curve and no held-out users.")
    ] = False,
    force: Force = None,
    adapter: AdapterFolder = None,
    store: StoreOption = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Find the samples that cause the bias, update the adapter, report before and after."""
    from fudlr.common.files import check_replaceable
    from fudlr.debias import CURVE
    from fudlr.debias import debias as debias_samples
    from fudlr.output.results import write_result
    from fudlr.report import print_summary

    check_replaceable(out, "result")
    loaded = open_run(run, adapter, settings, device=device, config=config)
    asked = {"objective": objective, "budget": budget, "damping": damping, "rows": rows}
    asked |= {"force": force, "store": str(store) if store else None}
    options = debias_options(loaded.config, config, settings, asked)
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


def forget(
    run: RunFolder,
    *,
    out: Out,
    users: Annotated[
        Path | None, typer.Option(help="Text file with a user id a line: their samples go.")
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="The same of items: the samples that teach them go.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="The same of training samples (`sample_id`).")
    ] = None,
    after: Annotated[
        list[Path] | None,
        typer.Option(help="An earlier result, whose samples stay forgotten; repeatable."),
    ] = None,
    damping: Damping = None,
    rows: Rows = None,
    force: Force = None,
    adapter: AdapterFolder = None,
    store: StoreOption = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Take named users, items or samples out of the adapter, with an audit of what is left."""
    from fudlr.common.files import check_replaceable
    from fudlr.data.named import read_ids
    from fudlr.debias import forget as forget_samples
    from fudlr.output.results import write_result
    from fudlr.report import print_checks, print_summary

    check_replaceable(out, "result")
    files = {"users": users, "items": items, "samples": samples}
    named = {kind: read_ids(path, kind[:-1]) for kind, path in files.items() if path}
    loaded = open_run(run, adapter, settings, device=device, config=config)
    asked = {"damping": damping, "rows": rows, "force": force}
    asked |= {"store": str(store) if store else None}
    options = {**of_section("debias", settings), **given(asked)}
    base = debias_options(loaded.config, config, None, {})
    result = forget_samples(loaded, base, after=after or (), **named, **options)
    write_result(out, result)
    print_summary(result.summary)
    print_checks(result.summary)
    say(f"Adapter, mask, summary and report are in {out}. Proof: fudlr verify {out}")


def sweep(
    run: RunFolder,
    *,
    out: Out,
    objective: Objective = None,
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
    processes: Processes = None,
    adapter: AdapterFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Sweep λ's and budgets over one solve: predicted, measured and retrained, with a plot."""
    from fudlr.common.files import claim_folder
    from fudlr.sweep import Grid, parse_list, print_sweep, sweep_run, write_sweep
    from fudlr.verify import default_processes

    lists = {"lambda_fair": lambda_fair, "lambda_acc": lambda_acc, "lambda_spa": lambda_spa}
    lists |= {"budget": budget}
    parsed = {name: parse_list(name, text) for name, text in given(lists).items()}
    claim_folder(out, "sweep")
    loaded = open_run(run, adapter, settings, device=device, config=config)
    asked = {"objective": objective, "rows": rows}
    options = debias_options(loaded.config, config, settings, asked)
    record = sweep_run(
        loaded,
        Grid.around(options, **parsed),
        options,
        out,
        measure=measure,
        retrained=retrain,
        processes=processes or default_processes(),
    )
    write_sweep(out, record)
    print_sweep(record)
    say(f"The table is in {out / 'sweep.json'} and .parquet, the plot in {out / 'sweep.svg'}")


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
    objective: Objective = None,
    budget: Budget = None,
    rows: Rows = None,
    adapter: AdapterFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Find a mask and an adapter for each group of users, from one gradient pass and one solve."""
    from fudlr import groups
    from fudlr.common.files import check_replaceable

    check_replaceable(out, "groups")
    loaded = open_run(run, adapter, settings, device=device, config=config)
    sets = groups.sets_of_column(loaded.interactions, by) if by else []
    sets += groups.sets_of_files(loaded.interactions, users or [])
    asked = {"objective": objective, "budget": budget, "rows": rows}
    options = debias_options(loaded.config, config, settings, asked)
    groups.print_grouped(groups.write_grouped(out, groups.debias_groups(loaded, sets, options)))
    say(f"Figures, masks and adapters are in {out}")


def compare(
    run: RunFolder,
    *,
    out: Out,
    objective: Objective = None,
    budget: Budget = None,
    rival: Annotated[
        list[str] | None, typer.Option(help="One of docs/rivals.md, repeatable; all by default.")
    ] = None,
    processes: Processes = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Compare removal with its rivals on one trained adapter: a table and a Pareto plot."""
    from fudlr.common.files import claim_folder
    from fudlr.compare import compare_run, print_comparison, write_comparison
    from fudlr.verify import default_processes

    claim_folder(out, "comparison")
    loaded = open_run(run, None, settings, device=device, config=config)
    asked = {"objective": objective, "budget": budget}
    options = debias_options(loaded.config, config, settings, asked)
    record = compare_run(loaded, options, out, rival, processes or default_processes())
    write_comparison(out, record)
    print_comparison(record)
    say(f"The table is in {out / 'comparison.json'}, the plot in {out / 'comparison.svg'}")
