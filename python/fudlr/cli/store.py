"""`fudlr store info|verify|merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import Out

app = typer.Typer(help="Look at, check and join stores of gradients.", no_args_is_help=True)
StoreFolder = Annotated[Path, typer.Argument(help="A store, such as RUN/store.")]


@app.command()
def info(store: StoreFolder) -> None:
    """Say what a store holds, what it was made from, and what it lost."""
    from fudlr.gradients.store.commands import store_info

    store_info(store)


@app.command()
def verify(store: StoreFolder) -> None:
    """Compare every row and projection with their checksums."""
    from fudlr.gradients.store.commands import store_verify

    store_verify(store)


@app.command()
def merge(
    stores: Annotated[list[Path], typer.Argument(help="Stores of one model and adapter.")],
    *,
    out: Out,
    combine_data: Annotated[
        bool, typer.Option(help="Also where their data differ: samples that came later.")
    ] = False,
) -> None:
    """Copy the last epochs' rows of several stores into a new one, for the closed form."""
    from fudlr.gradients.store.commands import store_merge

    store_merge(stores, out, combine_data=combine_data)
