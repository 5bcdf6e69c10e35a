"""`fudlr train`: a LoRA recommender from data."""

from __future__ import annotations

from typing import Annotated

import typer

from fudlr.cli.options import ConfigFile, Out, Seed, Settings, Threads, configure, set_threads
from fudlr.common.terminal import say


def train(
    *,
    out: Out,
    data: Annotated[
        str | None,
        typer.Option(help="ml-100k, synthetic, or a file or folder; `fudlr data check` tries it."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="small-llama, or a Hugging Face model folder.")
    ] = None,
    seed: Seed = None,
    record: Annotated[
        bool | None,
        typer.Option(
            help="Record the training's gradients into the run's store, or refuse to train; "
            "without either option, record where the training allows it."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in this folder.")
    ] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Train a LoRA recommender over item tokens and write a run folder."""
    from fudlr.run import train_run

    set_threads(threads)
    asked = {
        "data.source": data,
        "model.base": base,
        "record.required": record or None,
        "record.epochs": "none" if record is False else None,
    }
    options = configure(config, settings, seed, asked)
    train_run(options, out, overwrite=overwrite)
    say(f"The run is in {out}. Next: fudlr debias {out} --objective arp --out {out}-arp")
