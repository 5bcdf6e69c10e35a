"""`fudlr train`, a LoRA recommender from data, and `fudlr record`, its store made afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import (
    AdapterFolder,
    ConfigFile,
    Device,
    Dtype,
    Out,
    RunFolder,
    Seed,
    Settings,
    Threads,
    at_home,
    configure,
    of_section,
    open_run,
    parse,
)
from fudlr.common.errors import UsageError
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
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Train a LoRA recommender and write a run folder."""
    from fudlr.run import train_run

    asked = {
        "data.source": data,
        "model.base": base,
        "model.device": device,
        "model.dtype": dtype,
        "record.epochs": "none" if record is False else None,
    }
    options = configure(config, settings, seed, asked)
    if options.lora.adapter is not None:
        raise UsageError(
            f"an adapter was to be trained, and {options.lora.adapter} to be taken as it is",
            "an adapter from elsewhere is not trained",
            "Take it with fudlr adopt --base BASE --adapter FOLDER --data DATA --out RUN",
        )
    train_run(options, out, overwrite=overwrite, required=bool(record))
    say(f"The run is in {out}. Next: fudlr debias {out} --objective arp --out {out}-arp")


def adopt(
    *,
    base: Annotated[str, typer.Option(help="Hugging Face model folder that it was trained on.")],
    adapter: Annotated[Path, typer.Option(help="peft's folder, or a Trainer's checkpoint-N.")],
    data: Annotated[str, typer.Option(help="ml-100k, synthetic, or a file or folder.")],
    out: Out,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="What it was trained on: prompts and answers, messages, instructions, or ids; "
            "without it, the data's own training samples."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in this folder.")
    ] = False,
    device: Device = None,
    config: ConfigFile = None,
    settings: Settings = None,
    threads: Threads = None,
) -> None:
    """Take an adapter trained elsewhere as it is: show what the model reads, and write a run."""
    from fudlr.lora import adapter_folder
    from fudlr.run import train_run

    found = adapter_folder(adapter)
    asked = {"data.source": data, "model.base": base, "model.device": device}
    asked["lora.adapter"] = str(found)
    options = configure(config, settings, None, asked)
    train_run(options, out, overwrite=overwrite, rows=rows, named=parse(settings))
    say(
        f"The run is in {out}. Next: fudlr record {out}, then "
        f"fudlr debias {out} --objective arp --out {out}-arp"
    )


def record(
    run: RunFolder,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the store (RUN/store).", callback=at_home)
    ] = None,
    adapter: AdapterFolder = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Record training samples' sketched gradients in one pass; resumes a killed recording."""
    from fudlr.config import load_config, merge
    from fudlr.gradients.store.commands import store_info
    from fudlr.record import record_run

    loaded = open_run(run, adapter, settings, "record", device=device, config=config)
    base = load_config(config) if config else loaded.config
    given = {f"record.{name}": value for name, value in of_section("record", settings).items()}
    store_info(record_run(loaded, out, merge(base, given).record).folder)
    asked = "" if adapter is None else f" --adapter {adapter}"
    asked += "" if out is None else f" --store {out}"
    say(f"Next: fudlr debias {run}{asked} --objective arp --out {run}-arp")
