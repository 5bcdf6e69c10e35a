"""`fudlr evaluate`: all metrics of an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import AdapterFolder, RunFolder, Threads, set_threads
from fudlr.files import write_json


def evaluate(
    run: RunFolder,
    *,
    adapter: AdapterFolder = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    threads: Threads = None,
) -> None:
    """Print all metrics of the run's adapter, or of another one, as JSON."""
    from fudlr.evaluation import make_prompts, measure
    from fudlr.run import load_run

    set_threads(threads)
    loaded = load_run(run, adapter)
    valid = make_prompts(loaded.split, loaded.split.valid, loaded.config.data)
    test = make_prompts(loaded.split, loaded.split.test, loaded.config.data)
    figures = measure(loaded.recommender, valid, test).metrics
    if out is not None:
        write_json(out, figures)
    typer.echo(json.dumps(figures, indent=2))
