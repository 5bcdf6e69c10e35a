"""`fudlr doctor`: what this machine and installation have, and what a model would get of it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from fudlr.cli.options import AdapterFolder, Device, Dtype, open_run
from fudlr.common.errors import ModelError, UsageError


def doctor(
    run: Annotated[Path | None, typer.Argument(help="A run whose model is tried.")] = None,
    *,
    base: Annotated[
        Path | None, typer.Option(help="A Hugging Face model folder to try instead.")
    ] = None,
    adapter: AdapterFolder = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Say versions, instruction set, GPUs and kernels, and which way a model takes; JSON."""
    if (run and (base or dtype)) or (adapter and not run and not base):
        raise UsageError(
            "a model was to be tried",
            "a run has a base and a type of its own" if run else "an adapter alone is none",
            "Name a run, with --adapter or without, or --base, with --adapter and --dtype or not",
        )
    from fudlr_ext import EngineError

    found = machine()
    if run or base:
        try:
            tried = _of_run(run, adapter, device) if run else None
            found["model"] = tried or _of_base(Path(base or ""), adapter, device, dtype)
        except EngineError as error:
            found["model"] = {"way": "refused", "why": str(error)}
    typer.echo(json.dumps(found, indent=2, default=str))


def machine() -> dict[str, Any]:
    """Versions, and what torch and the library found and were built for."""
    import torch

    from fudlr.common.device import LIBRARY, versions, why_no_gpu

    def gpu(index: int) -> dict[str, Any]:
        major, minor = torch.cuda.get_device_capability(index)
        reason = why_no_gpu(index)
        return {
            "device": f"cuda:{index}",
            "name": torch.cuda.get_device_name(index),
            "architecture": f"sm_{major}{minor}",
            "used": "yes" if reason is None else f"no, {reason[0]}. {reason[1]}",
        }

    kernels = LIBRARY.devices()
    reason = why_no_gpu(0)
    return {
        "versions": versions(),
        "system": platform.platform(),
        "engine": {
            "instruction set": LIBRARY.isa(),
            "others built": LIBRARY.built_isas(),
            "kernels for": kernels,
            "GPU architectures": LIBRARY.cuda_architectures() if "cuda" in kernels else [],
        },
        "torch": {
            "instruction set": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "CUDA": torch.version.cuda,
            "GPUs": [gpu(i) for i in range(torch.cuda.device_count())],
        },
        "device": {
            "auto is": "cuda:0" if reason is None else "cpu",
            "why": "there is a GPU, and kernels for it" if reason is None else ". ".join(reason),
        },
    }


def _of_run(run: Path, adapter: Path | None, device: str | None) -> dict[str, Any]:
    """Try the run's model on some of its samples."""
    import numpy as np

    loaded = open_run(run, adapter, None, None, device=device)
    recommender, train = loaded.recommender, loaded.split.train
    batch = recommender.batch(train.take(np.arange(min(4, len(train)))))
    loaded.engine.sample_grads(recommender.forward, recommender.loss, batch)
    store = {"parameters": loaded.engine.d, "store": (run / "store").is_dir()}
    return {**store, **loaded.where(), **_verdict(loaded.engine.report())}


def _of_base(
    folder: Path, adapter: Path | None, device: str | None, dtype: str | None
) -> dict[str, Any]:
    """Try a base with an adapter, or a fresh one on all linear layers, on random tokens."""
    import torch

    from fudlr import lora
    from fudlr.common.device import facts, moved, place
    from fudlr.config import LoraSettings
    from fudlr.run.base import load_base
    from fudlr_ext import Engine, label_logits, label_loss

    where = place(device or "auto", dtype or "auto", folder)
    base = load_base(folder, where.dtype)
    try:
        fresh = LoraSettings(targets=(lora.ALL_LINEAR,))
        model = lora.load(base, adapter) if adapter else lora.attach(base, fresh, 0)
    except ModelError as error:
        return {"way": "refused", "why": str(error)}
    model = model.to(where.device).eval()
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    tokens = torch.randint(vocabulary, (3, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0  # a shorter one
    labels = tokens.where(torch.arange(16) > 11, -100)
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    engine = Engine(model, check=True)
    engine.sample_grads(label_logits, label_loss, moved(batch, where.device))
    said = {"parameters": engine.d, **facts(*where), "way": str(engine.report())}
    return {**said, **_verdict(engine.report())}


def _verdict(report: Any) -> dict[str, str]:
    """A report in a word, and what follows from it."""
    why = "; ".join(report.why) or "; ".join(dict.fromkeys(report.own_code.values()))
    if report.fused_layers:
        return {"verdict": "fused layers: the fastest way"}
    if report.single:
        return {"verdict": f"single layers: right, and slower than fused ones, since {why}"}
    return {"verdict": f"the model's own code: right, and no faster than peft, since {why}"}
