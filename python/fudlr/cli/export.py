"""`fudlr export`: a result for other people's training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.common.terminal import say


def export(
    result: Annotated[Path, typer.Argument(help="A folder that `fudlr debias` wrote.")],
    *,
    out: Annotated[
        Path, typer.Option(help="NAME.parquet, NAME.jsonl, or a folder for `datasets`.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of this name.")
    ] = False,
    run: Annotated[Path | None, typer.Option(help="Its run, where that has moved.")] = None,
) -> None:
    """Write the training samples with their weights: 0 for those that were taken out, else 1."""
    from fudlr.output.export import weighted_samples, write_samples
    from fudlr.run import load_run

    table = weighted_samples(result, None if run is None else load_run(run))
    write_samples(table, out, overwrite=overwrite)
    kept = int(table["weight"].sum())
    say(f"{len(table)} samples are in {out}, {len(table) - kept} of them with weight 0")
