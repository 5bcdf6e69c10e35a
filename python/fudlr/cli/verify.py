"""`fudlr verify`: real retraining, held against the update."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import Threads, set_threads
from fudlr.common.terminal import say


def verify(
    result: Annotated[Path, typer.Argument(help="A folder that `fudlr debias` wrote.")],
    *,
    run: Annotated[Path | None, typer.Option(help="Its run, where that has moved.")] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seeds", min=0, help="Retrain with and without at this seed; repeatable."),
    ] = None,
    lds: Annotated[int, typer.Option(min=0, help="Random removals, each retrained: LDS.")] = 0,
    targeted: Annotated[int, typer.Option(min=0, help="Targeted removals beside them.")] = 0,
    share: Annotated[float, typer.Option(help="Share that each of these removes.")] = 0.1,
    loo: Annotated[int, typer.Option(min=0, help="Samples to leave out one at a time.")] = 0,
    heldout: Annotated[
        bool, typer.Option("--heldout", help="Retrain for held-out users too, cross-fitted.")
    ] = False,
    forgetting: Annotated[
        bool, typer.Option("--forgetting", help="Train on, and measure what returns.")
    ] = False,
    planted: Annotated[
        Path | None, typer.Option(help="CSV or Parquet of samples known to cause the bias.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Retrainings at a time; one a core by default.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Retrain without the removed samples and hold the update against it."""
    from fudlr.verify import Checks, default_processes, verify_result

    set_threads(threads)
    checks = Checks(
        seeds=tuple(seeds or ()),
        lds=lds,
        targeted=targeted,
        share=share,
        loo=loo,
        heldout=heldout,
        forgetting=forgetting,
        planted=planted,
        processes=processes or default_processes(),
    )
    verify_result(result, run, checks)
    say(f"The figures of the retraining are in {result / 'summary.json'} and its report")
