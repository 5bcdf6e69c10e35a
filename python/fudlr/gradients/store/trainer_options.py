"""Which of a `transformers.Trainer`'s options allow a recording."""

from __future__ import annotations

from typing import Any

from fudlr.common.errors import UsageError


def check_arguments(args: Any, loader: Any, *, epochs: int, epoch: int | None) -> int:
    """The epoch that is to be recorded, from 1.

    Args:
        args: `transformers.TrainingArguments`.
        loader: The training's data loader.
        epochs: Epochs that will be begun.
        epoch: The one asked for; the last where None.

    Raises:
        UsageError: An option that does not go with a recording, all of them by name.
    """
    wrong = {
        "remove_unused_columns=True takes the ids away": args.remove_unused_columns,
        "dataloader_drop_last=True leaves samples out": args.dataloader_drop_last,
        f"{args.world_size} processes train at once": args.world_size > 1,
        f"{args.n_gpu} GPUs share a batch": args.n_gpu > 1,
        "label smoothing changes the loss": args.label_smoothing_factor > 0,
        "torch_compile hides the layers": args.torch_compile,
        "DeepSpeed shards parameters": bool(args.deepspeed),
        "FSDP shards parameters": bool(args.fsdp),
        "the data set has no length": not hasattr(loader.dataset, "__len__"),
    }
    found = [reason for reason, holds in wrong.items() if holds]
    if found:
        raise UsageError(
            "a Trainer's gradients were to be recorded",
            "; ".join(found),
            "Change these options, or use `Recorder` in a loop of your own",
        )
    if epoch is not None and not 1 <= epoch <= epochs:
        raise UsageError(
            f"epoch {epoch} was to be recorded",
            f"the training has {epochs}",
            "Name one of them, or leave it out for the last",
        )
    return epoch or epochs
