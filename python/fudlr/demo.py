"""The demo: MovieLens-100k from its wheel, whole.

A small Llama is pretrained on each user's older half, a LoRA adapter trained on the newer one,
debiased for popularity (`arp/`) and for the gap between genders (`hellinger/`), and both updates
are verified by real retraining.
"""

from __future__ import annotations

from pathlib import Path

from fudlr.common.progress import StageClock
from fudlr.config import RunConfig, merge
from fudlr.data import fetch_ml100k
from fudlr.debias import debias
from fudlr.output.results import check_result_folder, write_result
from fudlr.run import train_run
from fudlr.verify import verify_result

OBJECTIVES = ("arp", "hellinger")
SMALL = {
    "train.epochs": 2,
    "model.pretrain_epochs": 1,
    "data.max_train_per_user": 2,
    "debias.force": True,  # so little training bears signatures of failure, and is to run through
}


def run_demo(config: RunConfig, out: Path, *, small: bool = False) -> list[Path]:
    """Run it all into `out`: `run/`, and one folder an objective. Returns the reports.

    Args:
        config: Options; the data's source is MovieLens-100k where none other is named.
        out: Where the results go.
        small: Fewer samples and epochs: a check that all parts work, not a result.
    """
    for objective in OBJECTIVES:
        check_result_folder(out / objective)
    if config.data.source == "ml-100k":
        fetch_ml100k()
    if small:
        config = merge(config, SMALL)
    run = train_run(merge(config, {"out": out / "run"}), out / "run", StageClock(), overwrite=True)
    reports = []
    for objective in OBJECTIVES:
        also = tuple(name for name in ("arp", "hellinger", "dp") if name != objective)
        result = debias(run, objective=objective, also=also)
        folder = write_result(out / objective, result)
        verify_result(folder, run)
        reports.append(folder / "report.html")
    return reports
