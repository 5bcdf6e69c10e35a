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

from fudlr.cli import data, store
from fudlr.cli.boundary import DEBUG, Group, is_debug
from fudlr.cli.check import check
from fudlr.cli.compare import compare
from fudlr.cli.debias import debias
from fudlr.cli.demo import demo
from fudlr.cli.doctor import doctor
from fudlr.cli.evaluate import evaluate
from fudlr.cli.export import export
from fudlr.cli.grouped import grouped
from fudlr.cli.options import options
from fudlr.cli.push import push
from fudlr.cli.record import record
from fudlr.cli.sweep import sweep
from fudlr.cli.train import train
from fudlr.cli.verify import verify
from fudlr.common.errors import FudlrError
from fudlr.common.terminal import say

COMMANDS = (
    demo,
    train,
    record,
    debias,
    sweep,
    grouped,
    evaluate,
    check,
    verify,
    export,
    push,
    compare,
    options,
    doctor,
)
"""One file each; `fudlr --help` lists them in this order."""
GROUPS = {"data": data.app, "store": store.app}
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
        typer.Option(
            "--metrics-from",
            metavar="FILE",
            help="Python file to run, which registers own metrics.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Say which.")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"
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


def is_expected(error: BaseException) -> bool:
    """Raised on purpose, by the method or by the engine: shown in words, without a traceback."""
    from fudlr_ext.errors import EngineError

    return isinstance(error, (FudlrError, EngineError))


def exit_code(error: BaseException) -> int:
    """2 for wrong use, 1 for failure."""
    return error.exit_code if isinstance(error, FudlrError) else 1
