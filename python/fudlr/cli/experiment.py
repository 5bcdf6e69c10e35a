"""`fudlr experiment`: the paper's own experiments."""

from __future__ import annotations

from typing import Annotated

import typer

from fudlr.cli.options import ConfigFile, Out, Settings, Threads, parse, set_threads
from fudlr.common.errors import UsageError
from fudlr.common.files import check_writable
from fudlr.common.terminal import say
from fudlr.config import RunConfig, load_config, merge


def experiment(
    name: Annotated[str, typer.Argument(help="A name of docs/experiments.md, such as planted.")],
    *,
    out: Out,
    seeds: Annotated[
        list[int] | None, typer.Option("--seeds", min=0, help="A seed; repeatable.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="A check that all parts work, not a result.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Retrainings at a time; one a core by default.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Run one of the paper's experiments: hypotheses, a table, a plot; resumable."""
    from fudlr.experiments import EXPERIMENTS, Options, print_experiment, run_experiment
    from fudlr.verify import default_processes

    if name not in EXPERIMENTS:
        raise UsageError(
            f"the experiment {name!r} was asked for",
            "there is none of that name",
            f"Choose one of {', '.join(EXPERIMENTS)}",
        )
    set_threads(threads)
    check_writable(out)
    found = EXPERIMENTS[name]
    base = load_config(config) if config else merge(RunConfig(), found.defaults)
    options = Options(
        config=merge(base, parse(settings)),
        out=out,
        seeds=tuple(seeds or (0,)),
        small=small,
        processes=processes or default_processes(),
    )
    record = run_experiment(found, options)
    print_experiment(record)
    say(f"The figures are in {out / name}.json, the plot in {out / name}.svg")
