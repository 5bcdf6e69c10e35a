"""The command line: options in, one function of the package called, errors in plain words.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 and 4 as `fudlr check` says, 130 interrupted. A command
imports what it runs when it runs: torch, transformers and peft take seconds, and `--help` or a
wrong option needs none of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli import look, requests, results, train
from fudlr.cli.boundary import DEBUG, Group, is_debug, is_expected, quieten
from fudlr.cli.check import check
from fudlr.cli.demo import demo
from fudlr.common.errors import FudlrError
from fudlr.common.terminal import say

COMMANDS = (
    demo,
    train.train,
    train.record,
    requests.debias,
    requests.sweep,
    requests.grouped,
    look.evaluate,
    check,
    results.verify,
    results.export,
    results.push,
    requests.compare,
    look.options,
    look.doctor,
)
"""`fudlr --help` lists them in this order."""
GROUPS = {"data": look.data, "store": look.store}
"""Commands with commands of their own."""
INTERRUPTED = 130

app = typer.Typer(
    cls=Group,
    name="fudlr",
    help="Find the training samples that bias a LoRA-tuned recommender, and take them out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fudlr {version('fudlr-ext')}")
        raise typer.Exit


@app.callback()
def _everywhere(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", help="Tracebacks, and other libraries.")
    ] = False,
    metrics_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Python file to run, which registers own metrics."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Say which.")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"
    if not is_debug():
        quieten()
    if metrics_from is not None:
        from fudlr.metrics import load_metrics

        load_metrics(metrics_from)


for _command in COMMANDS:
    app.command()(_command)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)


def main() -> None:
    """Entry point of the `fudlr` command."""
    code: object = 0
    try:
        app()
    except SystemExit as ended:  # typer ends the process itself, after words about wrong use too
        code = ended.code
    except Exception as error:
        if is_debug() or not is_expected(error):
            raise
        say(f"error: {error}", "red")
        code = exit_code(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        say("interrupted; nothing is half-written, and finished results are kept")
    sys.exit(code if isinstance(code, int) else 0)


def exit_code(error: BaseException) -> int:
    """2 for wrong use, 1 for failure."""
    return error.exit_code if isinstance(error, FudlrError) else 1
