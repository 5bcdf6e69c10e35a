"""Gradients of metrics over many users, and of their mean loss, in one pass over the users.

    ∇F_j(θ) = Σ_users (∂scores_u/∂θ)ᵀ ∂F_j/∂scores_u

∂F_j/∂scores_u depends on all users together (group means, entropies), so that nothing can go back
before every user is scored. The forward passes' graphs are kept until then where they fit into
memory; where they do not, users are scored without a graph, which some recommenders do for less,
and each batch is run again. Both are exact, and never a sample of the users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fudlr.common.errors import DataError, NumericalError, UsageError
from fudlr.common.factors import Scores, leaf_of
from fudlr.common.parallel import ranks
from fudlr.common.progress import PATIENCE, track
from fudlr.data import Samples
from fudlr.metrics import Metric, surrogate
from fudlr.metrics.base import SummedMetric
from fudlr.metrics.scores import all_finite
from fudlr.recommenders import Recommender
from fudlr_ext import Engine
from fudlr_ext.vjp import DeferredVjp, not_zero

VALIDATION_LOSS = "val_loss"
"""Name of the mean loss of the prompts among the gradients."""
GRAPH_BYTES = 2 * 2**30
"""Memory that kept graphs may take; beyond it each batch is run a second time."""


class MetricGradient(NamedTuple):
    """A metric's surrogate value, and its gradient over the adapter, `[d]`."""

    value: float
    gradient: Tensor


class MetricGradients(dict[str, MetricGradient]):
    """By metric name, and what else the pass over the prompts gave.

    Attributes:
        scores: Of the prompts, `[n, M]`, or their factors.
        losses: Of the prompts, `[n]`.
        parts: What each of K parts of the prompts adds to the gradients, `[K, k, d]`, in the order
            of the names; None where it was not asked for.
    """

    def __init__(
        self,
        found: Mapping[str, MetricGradient],
        scores: Scores,
        losses: Tensor,
        parts: Tensor | None = None,
    ) -> None:
        super().__init__(found)
        self.scores, self.losses, self.parts = scores, losses, parts


def metric_gradients(
    recommender: Recommender,
    engine: Engine,
    samples: Samples,
    side: Any,
    metrics: Sequence[Metric],
    *,
    validation_loss: bool = True,
    batch_size: int = 256,
    graph_bytes: int = GRAPH_BYTES,
    parts: Sequence[int] = (),
) -> MetricGradients:
    """Values and gradients of metrics over many prompts, and of the prompts' mean loss.

    Args:
        recommender: Gives batches, outputs, scores and losses.
        engine: Takes cotangents through the model.
        samples: The n prompts.
        side: What the metrics know of these prompts, row by row.
        metrics: Each with a `name` and a `surrogate`.
        validation_loss: Whether the mean loss joins them, as `VALIDATION_LOSS`; it costs a
            backward pass of its own.
        batch_size: Prompts a batch.
        graph_bytes: Memory for kept graphs, by the first batch's; see `GRAPH_BYTES`.
        parts: Also keep what each part of the prompts adds; the numbers of prompts in each part,
            in their order. No batch is of two parts.

    Raises:
        UsageError: Nothing to differentiate, or a name that occurs twice.
        DataError: No prompts.
        NumericalError: Scores, a metric's value or its gradient are not finite.
    """
    names = [metric.name for metric in metrics] + [VALIDATION_LOSS] * validation_loss
    if not names or len(set(names)) < len(names):
        raise UsageError(
            "metrics were to be differentiated",
            f"{list(names)}: none, or one of them twice",
            "Name at least one metric, and each once",
        )
    if not len(samples):
        raise DataError(
            f"the gradients of {', '.join(names)} were to be computed",
            "there are no prompts",
            "Give at least one validation prompt",
        )

    def rows_and_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        outputs = recommender.forward(model, batch)
        rows = recommender.score_rows(outputs, batch).float()
        losses = recommender.loss(outputs, batch).float()
        return rows, losses if validation_loss else losses.detach()

    here, n, k = ranks(), len(samples), len(names)
    cuts, owner = _cuts(n, batch_size, parts)
    mine = range(len(cuts))[here.part(len(cuts))]
    # The same ones on every pass: a recommender may keep in them what it wrote.
    made = recommender.parts(samples, [cuts[number] for number in mine], scoring=True)
    first = int(cuts[mine[0]][0]) if len(mine) else 0
    places = (slice(int(cuts[i][0]) - first, int(cuts[i][-1]) + 1 - first) for i in mine)
    batches = list(zip(places, made, strict=True))
    # The model is in memory anyway, however many graphs refer to it.
    plain = (p for p in recommender.model.parameters() if not _is_wrapper(p))
    weights = {p.untyped_storage().data_ptr() for p in plain}
    kept, rows, losses = _score(engine, rows_and_loss, batches, graph_bytes, weights)
    whole_losses = here.cat(losses)
    width = max(here.gather(rows.shape[1]))
    scores = recommender.scores_of(here.cat(rows if len(rows) else torch.empty(0, width)))
    values, through_rows = _surrogates(metrics, scores, side, slice(first, first + len(rows)))
    through_loss = losses.new_zeros(k, len(losses))
    if validation_loss:
        values.append(float(whole_losses.mean()))
        through_loss[-1] = 1 / n
    shares = torch.zeros(len(parts) or 1, k, engine.d, dtype=engine.dtype)
    shown = track(batches, len(batches), "gradients of metrics", delay=PATIENCE)
    for at, (part, batch) in enumerate(shown):
        way = kept[at] if kept else engine.deferred_vjp(rows_and_loss, batch)
        own_rows = rows.new_zeros(k, *rows[part].shape)
        for line, cotangent in zip(own_rows, through_rows, strict=False):
            line.copy_(cotangent[part])
        shares[owner[mine[at]]] += _pull(way, own_rows, through_loss[:, part])
    here.sum(shares)
    found = {}
    for name, value, gradient in zip(names, values, shares.sum(0), strict=True):
        if broken := int((~gradient.isfinite()).sum()):
            raise NumericalError(
                f"the gradient of {name} was to be used",
                f"{broken} of its {gradient.numel()} entries are not finite",
                "Look for a division by zero or a logarithm of zero in the metric's surrogate",
            )
        found[name] = MetricGradient(value, gradient)
    return MetricGradients(found, scores, whole_losses, shares if parts else None)


def _cuts(n: int, size: int, parts: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    """The n prompts in batches of at most `size`, none of two parts, as many for each rank as for
    any other where there are no parts; and the part of each."""
    every, here = torch.arange(n), ranks().size
    if not parts:
        count = here * math.ceil(math.ceil(n / here) / size)
        cuts = every.split(size) if here == 1 else every.tensor_split(min(n, count))
        return list(cuts), [0] * len(cuts)
    halved = [part.tensor_split(math.ceil(len(part) / size)) for part in every.split(list(parts))]
    owner = [number for number, own in enumerate(halved) for _ in own]
    return [cut for own in halved for cut in own], owner


def _pull(way: DeferredVjp, through_scores: Tensor, through_loss: Tensor) -> Tensor:
    """What a batch adds to the gradients `[k, d]`; no backward pass for metrics blind to it."""
    lines = zip(through_scores, through_loss, strict=True)
    used = [any(map(not_zero, line)) for line in lines]
    live = torch.tensor(used, device=through_scores.device)
    if bool(live.all()):
        return way.vjp((through_scores, through_loss)).cpu()
    live[0] |= not bool(live.any())  # the width comes from a pass
    found = way.vjp((through_scores[live], through_loss[live])).cpu()
    return found.new_zeros(len(live), found.shape[1]).masked_scatter(live[:, None], found)


def _score(
    engine: Engine,
    forward: Callable[..., Any],
    batches: Sequence[tuple[slice, Any]],
    graph_bytes: int,
    weights: Container[int],
) -> tuple[list[DeferredVjp], Tensor, Tensor]:
    """Rows of scores, and losses, of all prompts; each batch's vjp, or none if too large."""

    def without_graph(model: nn.Module, batch: Any) -> Any:
        with torch.no_grad():
            return forward(model, batch)

    kept: list[DeferredVjp] = []
    scores, losses = [], []
    fits = True
    shown = track(batches, len(batches), "score prompts", delay=PATIENCE)
    for number, (_, batch) in enumerate(shown):
        if number == 0:
            with _saved_bytes(weights) as sizes:
                way = engine.deferred_vjp(forward, batch)
            fits = (way.held + sum(sizes.values())) * len(batches) <= graph_bytes
        else:
            way = engine.deferred_vjp(forward if fits else without_graph, batch)
        found_scores, found_losses = way.outputs
        scores.append(found_scores.cpu())
        losses.append(found_losses.cpu())
        if fits:
            kept.append(way)
    if not batches:
        return [], torch.empty(0, 0), torch.empty(0)
    return kept, torch.cat(scores), torch.cat(losses)


def _is_wrapper(tensor: Tensor) -> bool:
    """Whether it has no storage of its own, but is made of other tensors: a quantised weight."""
    return hasattr(tensor, "__tensor_flatten__")


@contextmanager
def _saved_bytes(weights: Container[int]) -> Iterator[dict[int, int]]:
    """Bytes of what the graph made within keeps beside the weights, by storage."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _is_wrapper(tensor):
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks
    with hooks(pack, lambda tensor: tensor):
        yield sizes


def _surrogates(
    metrics: Sequence[Metric], scores: Scores, side: Any, own: slice
) -> tuple[list[float], list[Tensor]]:
    """Value of every metric, and ∂value/∂scores `[m, M]` of the prompts `own`, or `[m, w]` in the
    users of factors. Each of several ranks computes a function of sums over prompts from its own.
    """
    leaf, moving = leaf_of(scores)  # one for all, so that they share what they are made of
    here = ranks()
    index = torch.arange(len(scores))[own]
    own_leaf, own_moving = leaf_of(scores[own])
    own_side = side.take(index) if here.size > 1 else side
    if not all_finite(leaf):
        row = int((~leaf.isfinite().all(dim=1)).nonzero()[0])
        raise NumericalError(
            "prompts were to be scored",
            f"the scores of prompt {row} are not finite",
            "Look for NaN in the model's weights, or use float32",
        )
    values, cotangents = [], []
    for metric in metrics:
        summed = here.size > 1 and isinstance(metric, SummedMetric)
        at = own_leaf if summed else leaf
        if isinstance(metric, SummedMetric) and here.size > 1:
            value = _shared(metric, own_moving, own_side, len(scores))
        else:
            value = surrogate(metric, moving, side)
        if value.dim() or not value.requires_grad or not bool(value.isfinite()):
            raise NumericalError(
                f"the gradient of {metric.name} was to be computed",
                f"its surrogate is not a finite, differentiable scalar (it gave {value})",
                "Write the surrogate in differentiable torch operations on the scores",
            )
        (cotangent,) = torch.autograd.grad(value, at, retain_graph=moving is not leaf)
        values.append(float(value.detach()))
        cotangents.append(cotangent if summed else cotangent[own])
    return values, cotangents


def _shared(metric: SummedMetric, scores: Scores, side: Any, n: int) -> Tensor:
    """The surrogate of all ranks' n prompts, differentiable in this rank's `scores`."""
    mine = metric.soft_sums(scores, side)
    sums = mine.detach().clone()
    ranks().sum(sums)
    # The derivative of all ranks' sums by this rank's is 1.
    whole = (sums + (mine - mine.detach()))[None]
    return metric.soft_finish(whole, whole.new_full((1,), n), side)[0]
