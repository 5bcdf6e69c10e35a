"""The command line: options in, one function of the package called, errors in plain words.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 and 4 as `fudlr check` says; 130, 143 and 129 ended by
SIGINT, SIGTERM and SIGHUP, all of which clean up and leave earlier results as they were. A command
imports what it runs when it runs: torch, transformers and peft take seconds, and `--help` or a
wrong option needs none of them.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fudlr.cli import look, queries, requests, results, train
from fudlr.cli.boundary import DEBUG, Group, in_words, is_debug, is_expected, quieten
from fudlr.cli.check import check
from fudlr.cli.demo import demo
from fudlr.cli.doctor import doctor
from fudlr.common import parallel
from fudlr.common.errors import FudlrError, UsageError
from fudlr.common.memory import keep_freed
from fudlr.common.terminal import say

COMMANDS = (
    demo,
    train.train,
    train.adopt,
    train.record,
    requests.debias,
    requests.forget,
    requests.sweep,
    requests.grouped,
    queries.explain,
    queries.query,
    look.evaluate,
    check,
    results.verify,
    results.export,
    results.push,
    requests.compare,
    look.options,
    doctor,
)
"""`fudlr --help` lists them in this order."""
GROUPS = {"data": look.data, "store": look.store}
"""Commands with commands of their own."""
OVER_RANKS = ("train", "record", "debias", "forget", "sweep", "evaluate", "compare", "verify")
"""Commands that several processes do together; see docs/distributed.md."""
INTERRUPTED = 130

app = typer.Typer(
    cls=Group,
    name="fudlr",
    help="Find the training samples that bias a LoRA-tuned recommender, and take them out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes as long to import as all that `--help` needs
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fudlr {version('fudlr-ext')}")
        raise typer.Exit


@app.callback()
def _everywhere(
    context: typer.Context,
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
    keep_freed()
    # Commands draw into files alone; a backend that is not installed ends matplotlib's import.
    os.environ["MPLBACKEND"] = "agg"
    if debug:
        os.environ[DEBUG] = "1"
    if not is_debug():
        quieten()
    if metrics_from is not None:
        from fudlr.metrics import load_metrics

        load_metrics(metrics_from)
    if parallel.asked() > 1:
        if context.invoked_subcommand not in OVER_RANKS:
            raise UsageError(
                f"`fudlr {context.invoked_subcommand}` was to run in {parallel.asked()} processes",
                "it works in one",
                "Start it without torchrun and accelerate launch (WORLD_SIZE); several processes "
                f"do {', '.join(OVER_RANKS)}",
            )
        parallel.start()


for _command in COMMANDS:
    app.command()(_command)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)
for _listed in (app, *GROUPS.values()):
    for _info in _listed.registered_commands:  # whole sentences, where typer would cut them
        _info.short_help = getattr(_info.callback, "__doc__", "").partition("\n")[0]


def main() -> None:
    """Entry point of the `fudlr` command."""
    code: object = 0
    ended_by = _catch_signals()
    try:
        try:
            app()
        except SystemExit as ended:  # typer ends the process itself, after wrong use too
            code = ended.code
        if not code:
            parallel.end()
    except Exception as error:
        text = f"{error if is_expected(error) else in_words(error)}"
        code = 1 if parallel.fail(text) else exit_code(error)
        if is_debug():
            raise
        if not parallel.many():
            say(f"error: {text}", "red")
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        code = ended_by[0] if ended_by else code
        if not parallel.fail("interrupted"):
            say("interrupted; nothing is half-written, and finished results are kept")
    elif code and parallel.many():
        parallel.fail(f"it exits with code {code}")
    sys.exit(_flushed(code if isinstance(code, int) else 0))


def _catch_signals() -> list[int]:
    """Let SIGTERM and SIGHUP interrupt as SIGINT does; the exit code of the first that came."""
    ended_by: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        ended_by.append(128 + number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, interrupt)
    return ended_by


def _flushed(code: int) -> int:
    """The exit code, once all output is out; what cannot be written is said, and given up."""
    try:
        if sys.stdout is not None:  # closed by whoever called
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if code == 0 and not isinstance(error, BrokenPipeError):
            say(f"error: {in_words(error, 'the output was to be written to stdout')}", "red")
        return code or 1
    return code


def exit_code(error: BaseException) -> int:
    """2 for wrong use, 1 for failure."""
    return error.exit_code if isinstance(error, FudlrError) else 1
