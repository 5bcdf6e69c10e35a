"""`fudlr doctor`: what this machine offers, and which way a run's model takes."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from fudlr.cli.options import open_run


def doctor(
    run: Annotated[Path | None, typer.Argument(help="A run whose model is tried.")] = None,
) -> None:
    """Say versions, instruction set, GPUs and kernels, and which way a run's model takes; JSON."""
    import torch

    from fudlr.run import versions
    from fudlr_ext import _C

    library: Any = _C
    found: dict[str, Any] = {
        "versions": versions(),
        "system": platform.platform(),
        "engine": {
            "compiler": library.compiler,
            "instruction set": library.isa(),
            "others built": library.built_isas(),
            "kernels for": library.devices(),
        },
        "torch": {
            "instruction set": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "GPUs": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }
    if run is not None:
        found["run"] = try_run(run)
    typer.echo(json.dumps(found, indent=2, default=str))


def try_run(folder: Path) -> dict[str, Any]:
    """One batch of the run's samples through its model: which way, and why."""
    import numpy as np

    loaded = open_run(folder, None, None, None)
    samples = loaded.split.train
    batch = loaded.recommender.collate(samples.take(np.arange(min(4, len(samples)))))
    face = (loaded.recommender.forward, loaded.recommender.loss)
    rows = loaded.engine.sample_grads(*face, batch)
    report = getattr(loaded.engine, "report", None)
    return {
        "parameters": rows.shape[1],
        "dtype": loaded.engine.dtype,
        "store": (folder / "store").is_dir(),
        "way": str(report()) if report is not None else "not told by this engine",
    }
