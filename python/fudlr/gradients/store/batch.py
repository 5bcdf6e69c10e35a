"""One batch of a recording: what its backward pass gives, and what is at work in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fudlr.common.errors import UsageError
from fudlr.gradients.store.manifest import Recipe
from fudlr_ext.labels import IGNORED
from fudlr_ext.layers import Layout
from fudlr_ext.reducers import Reducer

ASKED = "a Trainer's gradients were to be recorded"
SAME_WEIGHT = 1e-3
"""Relative difference of label tokens' weights that counts as rounding."""
SAME_GRADIENT = 1e-3
"""Relative distance of the optimiser's gradient from the recorded one that counts as rounding."""


class BatchGradients:
    """Takes a batch's gradients from a `BackwardHook`, and reduces them: to themselves, or to
    sketches.

    A sample whose share u is 0 has the row 0.

    Attributes:
        rows: After `end`, g_i or their sketches, `[b, d]` or `[b, p]`.
        mean: Σ u_i g_i `[d]`.
    """

    rows: Tensor
    mean: Tensor

    def __init__(self, layout: Layout, ids: Tensor, shares: Tensor, reducer: Reducer) -> None:
        self.ids, self.shares = ids, shares
        self._reducer = reducer
        reducer.start(layout, len(ids))
        self.factors = reducer.add_all

    def multiplied(self, factor: float) -> None:
        """Say that the loss was multiplied by `factor` on its way to `backward`."""
        self.shares = self.shares * factor

    def end(self, mean: Tensor) -> None:
        """After the backward pass, which added `mean` `[d]`, take the samples' shares out."""
        self.mean, self.rows = mean, self._reducer.result()
        shares = self.shares
        if float(shares.min()) <= 0:
            self.rows[shares <= 0] = 0
            shares = shares.clamp_min(1e-38)
        self.rows /= shares.to(self.rows)[:, None]


def shares_of(n: int, divisor: float | Tensor | None, weights: Tensor | None) -> Tensor:
    """u = weight / divisor of each sample, `[n]` float32."""
    if weights is None and not isinstance(divisor, Tensor) and (divisor is None or divisor > 0):
        return torch.full((n,), 1 / (n if divisor is None else divisor))
    scale = torch.as_tensor(float(n) if divisor is None else divisor).detach().cpu().float()
    given = torch.ones(n) if weights is None else weights.detach().cpu().float()
    fits = scale.numel() in (1, n) and given.shape == (n,)
    if not fits or not bool((scale > 0).all()) or not bool((given >= 0).all()):
        raise UsageError(
            f"the divisors and weights of {n} samples were given",
            f"divisors {scale.flatten().tolist()[:5]}, weights {given.flatten().tolist()[:5]}",
            "Give one divisor above 0 for all or one each, and weights from 0 on, one each",
        )
    return given / scale.flatten()


def check_gradient(parameters: Sequence[Tensor], recipe: Recipe, mean: Tensor) -> None:
    """Raise where the optimiser is about to take another gradient than the recorded one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    given = torch.cat([gradient.flatten() for gradient in gradients]).to(mean)
    norm = float(mean.norm())
    factor = 1.0 if recipe.clip is None else min(1.0, recipe.clip / (norm + 1e-6))
    if len(gradients) == len(parameters):
        off = float((given - factor * mean).norm())
        if off <= SAME_GRADIENT * max(float(given.norm()), factor * norm):
            return
    raise UsageError(
        "a training was to be recorded, to be unrolled later",
        f"the optimiser's gradient is another than the recorded one (norm "
        f"{float(given.norm()):.4g} beside {factor * norm:.4g})",
        "Name the norm that the loop clips to (clip=), put every backward pass into "
        "recorder.batch, and leave the gradient as it is otherwise",
    )


def dropout_at_work(model: nn.Module) -> dict[str, float]:
    """What drops something out now, and which share: the largest of each kind of module.

    An adapter's is `lora_dropout`; others are called by their module's last name.
    """
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        share = module.p if isinstance(module, nn.Dropout) else 0.0
        share = share or getattr(module, "attention_dropout", 0.0)
        if module.training and isinstance(share, float) and share > 0:
            words = [part for part in name.split(".") if not part.isdigit()] or [name]
            kind = "lora_dropout" if "lora_dropout" in words else words[-1]
            found[kind] = max(share, found.get(kind, 0.0))
    return dict(sorted(found.items()))


@dataclass
class LabelledBatch:
    """A Trainer's batch between its forward pass and the end of its backward pass.

    Attributes:
        ids: The samples `[n]`.
        labels: `[n, t]`.
        counts: Label tokens of each sample `[n]`.
        items: Label tokens that the loss is divided by.
        context, here: Recording it.
        arrived: Whether a gradient came to its loss.
        wrong: Why its rows are not what the Trainer differentiates; empty where they are.
    """

    ids: Tensor
    labels: Tensor
    counts: Tensor
    items: Tensor
    context: AbstractContextManager[BatchGradients | None] | None = None
    here: BatchGradients | None = None
    arrived: bool = False
    wrong: str = ""

    @classmethod
    def of(cls, ids: Any, inputs: Mapping[str, Any], column: str) -> Self:
        """The batch of samples `ids` that the model is given in `inputs`.

        Raises:
            UsageError: There are no ids in `column`, or no labels.
        """
        labels = inputs.get("labels")
        if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.is_floating_point():
            found = f"the batch has no ids, one integer a sample, as {column!r}"
        elif not isinstance(labels, Tensor) or labels.dim() != 2 or len(labels) != len(ids):
            found = "the model was not given labels [n, t], a row for each id"
        elif "shift_labels" in inputs:
            found = "the batch brings its own shift_labels"
        else:
            counts = (labels[:, 1:] != IGNORED).sum(1)
            items = inputs.get("num_items_in_batch")
            items = counts.sum() if items is None else torch.as_tensor(items)
            return cls(ids, labels, counts.float(), items.to(counts.device).float().clamp_min(1))
        raise UsageError(
            ASKED,
            found,
            "Wrap the data set (Numbered) and a collator that drops columns (callback.collator), "
            "and let the model compute its loss from labels",
        )

    def watch(self, outputs: Any) -> None:
        """Have the factor of the loss taken from the gradient that comes to the model's `outputs`,
        and note what is wrong with them."""
        loss, logits = getattr(outputs, "loss", None), getattr(outputs, "logits", None)
        tokens, targets = getattr(outputs, "log_probs", None), self.labels[:, 1:]
        if isinstance(tokens, Tensor) and tokens.shape == targets.shape:
            # TRL's fused head: its trainer makes the loss of the label tokens' log-probabilities.
            if getattr(outputs, "aux_loss", None) is not None:
                self.wrong = "a router's loss is added to the label tokens'"
            tokens.register_hook(self._tokens_arrived)
        elif loss is None or logits is None or logits.dim() != 3:
            self.wrong = (
                f"{type(outputs).__name__} has neither a loss with logits [n, t, vocabulary] nor "
                "log_probs of its labels [n, t - 1]"
            )
        else:
            row, place = (targets != IGNORED).nonzero(as_tuple=True)
            given = logits.detach()[row, place].float(), targets[row, place]
            expected = float(cross_entropy(*given, reduction="sum") / self.items)
            if not math.isclose(expected, float(loss.detach()), rel_tol=1e-3, abs_tol=1e-6):
                self.wrong = (
                    f"the model's loss is {float(loss.detach()):.6g}, its label tokens' mean "
                    f"cross-entropy {expected:.6g}"
                )
            loss.register_hook(self._loss_arrived)

    def _loss_arrived(self, gradient: Tensor) -> None:
        self.arrived = True
        if self.here is not None:
            self.here.multiplied(float(gradient))

    def _tokens_arrived(self, gradient: Tensor) -> None:
        """Of log-probabilities `[n, t - 1]`, whose sum is divided by what the Trainer chose."""
        weights = -gradient[self.labels[:, 1:] != IGNORED]
        first = weights.flatten()[:1].sum()
        if bool(((weights - first).abs() > SAME_WEIGHT * first).any()):
            self.wrong = "the label tokens have different weights in the loss"
        self._loss_arrived(first.clamp_min(0) * self.items)
