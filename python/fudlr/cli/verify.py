"""`fudlr verify`: real retraining, held against the update."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import Threads, say, set_threads
from fudlr.verify import verify_result


def verify(
    result: Annotated[Path, typer.Argument(help="A folder that `fudlr debias` wrote.")],
    *,
    run: Annotated[Path | None, typer.Option(help="Its run, where that has moved.")] = None,
    threads: Threads = None,
) -> None:
    """Retrain without the removed samples and hold the update against it."""
    set_threads(threads)
    verify_result(result, run)
    say(f"The figures of the retraining are in {result / 'summary.json'} and its report")
