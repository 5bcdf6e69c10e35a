"""Questions about single outputs: `fudlr explain` and `query`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fudlr.cli.options import (
    AdapterFolder,
    Damping,
    Device,
    Rows,
    RunFolder,
    Settings,
    StoreOption,
    Threads,
    at_home,
    given,
    of_section,
    open_run,
)
from fudlr.common.errors import UsageError
from fudlr.common.terminal import say

Top = Annotated[int, typer.Option(min=1, help="Samples shown of each side.")]
Tokens = Annotated[
    bool, typer.Option("--tokens", help="In --out the part of each label token; rows=memory.")
]


def explain(
    run: RunFolder,
    *,
    user: Annotated[str, typer.Option(help="Id of a user.")],
    item: Annotated[
        str | None, typer.Option(help="Id of an item; the first of the user's list without.")
    ] = None,
    of: Annotated[
        str, typer.Option(help="score, rank, loss, or a metric: what the user adds to it.")
    ] = "score",
    top: Top = 20,
    tokens: Tokens = False,
    out: Annotated[
        Path | None, typer.Option(help="NAME.json or NAME.parquet.", callback=at_home)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="A result of the run, whose report gets a section of it.")
    ] = None,
    damping: Damping = None,
    rows: Rows = None,
    store: StoreOption = None,
    adapter: AdapterFolder = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Say which training samples raised and lowered what a user is recommended."""
    from fudlr.output.explained import add_to_report, check_report
    from fudlr.query import check_answers, print_answers, write_answers
    from fudlr.query import explain as explain_user

    if out is not None:
        check_answers(out)
    elif tokens:
        raise UsageError(
            "the parts of label tokens were asked for (--tokens)",
            "they are written to a file, and none is named",
            "Name one with --out",
        )
    loaded = open_run(run, adapter, settings, device=device)
    if report is not None:
        check_report(report, loaded)
    options = _options(settings, damping, rows, store, tokens=tokens)
    found = explain_user(loaded, user, item, of, **options)
    print_answers(found, top)
    if out is not None:
        write_answers(out, found, top, tokens=tokens)
        say(f"The samples are in {out}")
    if report is not None:
        add_to_report(report, found, top)
        say(f"They have a section in {report / 'report.html'}")


def query(
    run: Annotated[Path, typer.Argument(help="A folder that `fudlr train` wrote, or its store.")],
    *,
    prompts: Annotated[
        Path,
        typer.Option(
            help="JSON, JSONL or Parquet: item_id with history or user_id; or prompt and answer."
        ),
    ],
    out: Annotated[Path, typer.Option(help="NAME.json or NAME.parquet.", callback=at_home)],
    of: Annotated[str, typer.Option(help="loss, score or rank.")] = "loss",
    top: Top = 20,
    tokens: Tokens = False,
    damping: Damping = None,
    rows: Rows = None,
    store: StoreOption = None,
    adapter: AdapterFolder = None,
    settings: Settings = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Find the training samples that matter for each of many prompts, in one pass."""
    from fudlr.gradients.recording import STORE
    from fudlr.query import check_answers, read_prompts, write_answers
    from fudlr.query import query as query_run

    check_answers(out)
    asked = read_prompts(prompts)
    if run.name == STORE and (run / "manifest.json").is_file():
        run = run.parent
    loaded = open_run(run, adapter, settings, device=device)
    options = _options(settings, damping, rows, store, tokens=tokens)
    found = query_run(loaded, asked, of, **options)
    write_answers(out, found, top, tokens=tokens)
    say(f"The strongest samples of {len(asked)} prompts are in {out}")


def _options(
    settings: list[str] | None,
    damping: float | None,
    rows: str | None,
    store: Path | None,
    *,
    tokens: bool,
) -> dict[str, Any]:
    named = {"damping": damping, "rows": rows, "store": str(store) if store else None}
    options = {**of_section("debias", settings), **given(named)}
    if tokens and (options.setdefault("rows", "memory") not in ("memory", "stream") or store):
        raise UsageError(
            "the parts of label tokens were asked for (--tokens)",
            "rows are to be from a store, and recorded rows have no tokens",
            "Leave --rows and --store out, or choose --rows memory or stream",
        )
    return options
