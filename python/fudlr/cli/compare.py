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
    given,
    of_section,
    say,
    set_threads,
)
from fudlr.compare import RIVALS, compare_run, print_comparison, write_comparison
from fudlr.config import load_config, merge
from fudlr.files import check_writable
from fudlr.run import load_run
from fudlr.verify import default_processes


def compare(
    run: RunFolder,
    *,
    out: Out,
    objective: Annotated[str | None, typer.Option(help="What should become fairer.")] = None,
    budget: Annotated[float | None, typer.Option(help="Largest share to remove.")] = None,
    rival: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(RIVALS)}; all by default.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Retrainings at a time; one a core by default.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Compare removal with its rivals on one trained adapter: a table and a Pareto plot."""
    set_threads(threads)
    check_writable(out)
    loaded = load_run(run)
    whole = loaded.config
    if config:
        whole = whole.model_copy(update={"debias": load_config(config).debias})
    overrides = {
        **of_section("debias", settings),
        **given({"objective": objective, "budget": budget}),
    }
    whole = merge(whole, {f"debias.{name}": value for name, value in overrides.items()})
    record = compare_run(loaded, whole.debias, out, rival, processes or default_processes())
    write_comparison(out, record)
    print_comparison(record)
    say(f"The table is in {out / 'comparison.json'}, the plot in {out / 'comparison.svg'}")
