"""What is done with a result: `fudlr verify`, `export` and `push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fudlr.cli.options import Device, Processes, Threads, at_home
from fudlr.common.terminal import say

ResultFolder = Annotated[Path, typer.Argument(help="A folder that `fudlr debias` wrote.")]
ItsRun = Annotated[Path | None, typer.Option(help="Its run, where that has moved.")]


def verify(
    result: ResultFolder,
    *,
    run: ItsRun = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seeds", min=0, help="Retrain with and without at this seed; repeatable."),
    ] = None,
    lds: Annotated[int, typer.Option(min=0, help="Random removals, each retrained: LDS.")] = 0,
    targeted: Annotated[int, typer.Option(min=0, help="Targeted removals beside them.")] = 0,
    share: Annotated[float, typer.Option(help="Share that each of these removes.")] = 0.1,
    heldout: Annotated[
        bool, typer.Option("--heldout", help="Retrain for held-out users too, cross-fitted.")
    ] = False,
    forgetting: Annotated[
        bool, typer.Option("--forgetting", help="Train on, and measure what returns.")
    ] = False,
    processes: Processes = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Retrain without the removed samples and hold the update against it."""
    from fudlr.verify import Checks, default_processes, verify_result

    checks = Checks(
        seeds=tuple(seeds or ()),
        lds=lds,
        targeted=targeted,
        share=share,
        heldout=heldout,
        forgetting=forgetting,
        processes=processes or default_processes(),
    )
    verify_result(result, run, checks, device or "auto")
    say(f"The figures of the retraining are in {result / 'summary.json'} and its report")


def export(
    result: ResultFolder,
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="NAME.parquet, .jsonl, .json (Alpaca's), .csv (MiniOneRec's), or a folder.",
            callback=at_home,
        ),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file of this name.")
    ] = False,
    run: ItsRun = None,
) -> None:
    """Write the training samples with their weights: 0 for those that were taken out, else 1."""
    from fudlr.output.export import check_samples, weighted_samples, write_samples
    from fudlr.run import load_run

    check_samples(out, overwrite=overwrite)
    table = weighted_samples(result, None if run is None else load_run(run))
    write_samples(table, out, overwrite=overwrite)
    kept = int(table["weight"].sum())
    say(f"{len(table)} samples are in {out}, {len(table) - kept} of them with weight 0")


def push(
    result: ResultFolder,
    repository: Annotated[str, typer.Argument(help="NAME or OWNER/NAME on the hub.")],
    *,
    base: Annotated[
        str | None, typer.Option(help="OWNER/NAME of the base model, as others load it.")
    ] = None,
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload the debiased adapter and the card that says what was removed and what changed."""
    from fudlr.output.push import push_adapter

    place = push_adapter(result, repository, base=base, private=private)
    say(f"{result / 'adapter'} is at {place}")
