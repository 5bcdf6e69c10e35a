"""A ready-made forward and loss: logits at label positions only, for causal language models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fudlr_ext.errors import EngineError
from fudlr_ext.fused_call import running

IGNORED = -100  # the label that transformers and torch.nn.functional.cross_entropy leave out


@dataclass
class Wanted:
    """Whether the model's last layer gave the positions asked for alone, as [n, L, hidden]."""

    served: bool = False


@contextmanager
def only(model: nn.Module, positions: Tensor) -> Iterator[Wanted]:
    """Say that of what `model` computes within, only these positions' outputs will be used.

    Within an engine's pass over fused layers the last one then computes these alone.

    Args:
        model: The model, or any module of it that has the decoder within.
        positions: [n, L], of tokens that are no padding; they may repeat.
    """
    wanted, call = Wanted(), running(model)
    if call is None:
        yield wanted
        return
    call.positions, call.wanted = positions, wanted
    try:
        yield wanted
    finally:
        call.positions = call.wanted = None


def _slots(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions [n, L] that predict each sample's labels, and whether each is used.

    Position p predicts label p + 1. L is the largest number of labels in a sample; a sample with
    fewer repeats its first one in the slots that it does not use.
    """
    wanted = labels[:, 1:] != IGNORED
    counts = wanted.sum(1)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise EngineError(
            "label_logits: the logits at every sample's labels were asked for",
            f"{len(empty)} samples have none but {IGNORED}: {empty[:10]} of the batch",
            "Leave them out, or look whether truncation cut the answers off",
        )
    # A stable sort puts each sample's label positions first, in order.
    order = torch.sort(wanted.logical_not().to(torch.uint8), dim=1, stable=True).indices
    order = order[:, : int(counts.max())]
    used = torch.arange(order.shape[1], device=labels.device) < counts[:, None]
    return order.where(used, order[:, :1]), used


def label_targets(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the labels that `label_logits` predicts, int64 [n, L]; -100 in slots not used."""
    labels = batch["labels"]
    positions, used = _slots(labels)
    return labels.gather(1, positions + 1).where(used, IGNORED)


def label_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Run a causal language model and return its logits at label positions only.

    The output matrix is applied to these positions alone, which is where most of the time of a
    small model with a large vocabulary goes; what the model does to its logits after that
    (scaling, soft caps) is kept.

    Args:
        model: A Hugging Face causal language model, with an adapter or without.
        batch: input_ids [n, t], labels [n, t] with -100 where there is none, attention_mask [n, t]
            if samples are padded; other entries are passed to the model.

    Returns:
        Logits [n, L, vocabulary] of the positions before each label, in order, with L the largest
        number of labels in a sample. Slots that a sample does not use repeat its first; see
        `label_targets`.

    Raises:
        EngineError: A sample has no label, or the model has no output matrix.
    """
    positions, _ = _slots(batch["labels"])
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise EngineError(
            "label_logits: a causal language model was expected",
            f"{type(model).__name__} has no output matrix (get_output_embeddings)",
            "Load it with AutoModelForCausalLM, or write your own forward(model, batch)",
        )

    def at_labels(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (hidden,) = inputs
        if wanted.served:  # the fused layers computed these positions alone
            return (hidden,)
        if hidden.shape[:-1] != batch["labels"].shape:
            raise EngineError(
                "label_logits: a causal language model was expected",
                f"the input of its output matrix is {list(hidden.shape)}, where labels are "
                f"{list(batch['labels'].shape)}",
                "Write your own forward(model, batch) and loss(outputs, batch)",
            )
        return (hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[2])),)

    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise EngineError(
            "label_logits: a causal language model was expected",
            f"{type(model).__name__} is an encoder with a decoder, which shifts labels by itself",
            "Write your own forward(model, batch) and loss(outputs, batch)",
        )
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    handle = head.register_forward_pre_hook(at_labels)
    try:
        with only(model, positions) as wanted:
            out = model(**inputs, use_cache=False)
    finally:
        handle.remove()
    if not isinstance(getattr(out, "logits", None), Tensor):
        raise EngineError(
            "label_logits: a causal language model was expected",
            f"{type(model).__name__} returns {type(out).__name__} without logits",
            "Write your own forward(model, batch), which takes them out of it",
        )
    return out.logits


def states_at(model: nn.Module, batch: Mapping[str, Tensor], positions: Tensor) -> Tensor:
    """Run a causal language model's decoder and return its last hidden states at some positions.

    Within an engine's pass the last layer computes these positions alone, without padding.

    Args:
        model: A Hugging Face causal language model, with an adapter or without.
        batch: input_ids [n, t], attention_mask [n, t] if samples are padded, and what else the
            model takes; no labels.
        positions: [n, L], of tokens that are no padding.

    Returns:
        States [n, L, hidden], as the output matrix gets them.
    """
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    with only(decoder, positions) as wanted:
        states: Tensor = decoder(**batch, use_cache=False).last_hidden_state
    if wanted.served:
        return states
    return states.gather(1, positions[:, :, None].expand(-1, -1, states.shape[2]))


def label_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return each sample's mean cross-entropy over its labels, [n], from `label_logits`."""
    targets = label_targets(batch)
    loss = F.cross_entropy(
        logits.flatten(0, 1).float() if logits.dtype != torch.float64 else logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view_as(targets)
    return loss.sum(1) / (targets != IGNORED).sum(1)
