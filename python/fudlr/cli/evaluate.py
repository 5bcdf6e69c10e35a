"""`fudlr evaluate`: all metrics of an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import AdapterFolder, RunFolder, Settings, Threads, open_run, set_threads
from fudlr.common.files import write_json


def evaluate(
    run: RunFolder,
    *,
    adapter: AdapterFolder = None,
    beams: Annotated[
        int | None,
        typer.Option(min=1, help="Titles: lists by beam search of this width; hard metrics alone."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Print all metrics of the run's adapter, or of another one, as JSON."""
    from fudlr.evaluation import make_prompts, measure, measure_lists

    set_threads(threads)
    loaded = open_run(run, adapter, settings, None)
    valid = make_prompts(loaded.split, loaded.split.valid, loaded.config.data)
    test = make_prompts(loaded.split, loaded.split.test, loaded.config.data)
    if beams is None:
        figures = measure(loaded.recommender, valid, test).metrics
    else:
        figures = measure_lists(loaded.recommender, test, beams)
    if out is not None:
        write_json(out, figures)
    typer.echo(json.dumps(figures, indent=2))
