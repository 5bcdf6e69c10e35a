"""`fudlr demo`: MovieLens-100k from its wheel, whole.

A small Llama is pretrained on each user's older half, a LoRA adapter trained on the newer one,
debiased for popularity (`arp/`) and for the gap between genders (`hellinger/`), and both updates
are verified by real retraining.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fudlr.cli.options import ConfigFile, Device, Dtype, Out, Seed, Settings, Threads, configure
from fudlr.common.terminal import say

if TYPE_CHECKING:
    from fudlr.config import RunConfig

OBJECTIVES = ("arp", "hellinger")
SMALL = {
    "train.epochs": 2,
    "model.pretrain_epochs": 1,
    "data.max_train_per_user": 2,
    "debias.force": True,  # diagnostics refuse so little training, which is to run through
}


def demo(
    *,
    out: Out = Path("out/demo"),
    small: Annotated[bool, typer.Option(help="A minute's version, as a check.")] = False,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """MovieLens-100k, whole: train, debias for ARP and for Hellinger, verify, report."""
    asked = {"model.device": device, "model.dtype": dtype}
    reports = run_demo(configure(config, settings, seed, asked), out, small=small)
    say("The reports: " + ", ".join(map(str, reports)))


def run_demo(config: RunConfig, out: Path, *, small: bool = False) -> list[Path]:
    """Run it all into `out`: `run/`, and one folder an objective. Returns the reports.

    Args:
        config: Options; the data's source is MovieLens-100k where none other is named.
        out: Where the results go.
        small: Fewer samples and epochs: a check that all parts work, not a result.
    """
    from fudlr.common.files import check_replaceable
    from fudlr.common.progress import StageClock
    from fudlr.config import merge
    from fudlr.data import fetch_ml100k
    from fudlr.debias import debias
    from fudlr.output.results import write_result
    from fudlr.run import train_run
    from fudlr.verify import verify_result

    for objective in OBJECTIVES:
        check_replaceable(out / objective, "result")
    if config.data.source == "ml-100k":
        fetch_ml100k()
    config = merge(config, SMALL if small else {})
    run = train_run(config, out / "run", StageClock(), overwrite=True)
    reports = []
    for objective in OBJECTIVES:
        also = tuple(name for name in ("arp", "hellinger", "dp") if name != objective)
        folder = write_result(out / objective, debias(run, objective=objective, also=also))
        verify_result(folder, run)
        reports.append(folder / "report.html")
    return reports
