"""A forward pass whose graph is kept: its outputs now, Jᵀ c for any cotangents c later.

What depends on the outputs of many batches together (a metric over all users) needs all of them
before any cotangent is known. Keeping the graphs saves the second forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.capture import Tape
from fudlr_ext.collect import Collector, no_gradient
from fudlr_ext.curvature import as_tuple
from fudlr_ext.errors import EngineError
from fudlr_ext.layers import Layout
from fudlr_ext.reducers import Sums


class DeferredVjp:
    """One batch's outputs and their backward pass; see `Engine.deferred_vjp`.

    Attributes:
        outputs: What `forward` returned, detached, as a tuple.
        held: Bytes that the graph's fused layers keep, which hooks on saved tensors do not see.
    """

    def __init__(self, layout: Layout, tape: Tape, outputs: Any) -> None:
        self._layout, self._tape = layout, tape
        self._graph: tuple[Tensor, ...] | None = as_tuple(outputs)
        self.outputs = tuple(tensor.detach() for tensor in self._graph)
        self.held: int = tape.held
        self._versions = self._weight_versions()

    def vjp(self, cotangents: Tensor | tuple[Tensor, ...], *, keep: bool = False) -> Tensor:
        """Return Σ cotangent · ∂outputs/∂θ for k cotangents, [k, d].

        An output whose cotangent is all zero takes no part in a pass, so that outputs with graphs
        of their own cost no more than they must.

        Args:
            cotangents: [k, ...outputs], one such tensor for every output tensor.
            keep: Whether the graph is needed again; freed otherwise.

        Raises:
            EngineError: Cotangents that do not fit, a graph that was freed, or an adapter that
                changed since the forward pass.
            NoGradientError: The outputs do not depend on the adapter.
        """
        graph = self._checked_graph()
        cotangents = as_tuple(cotangents)
        shapes = [list(tensor.shape) for tensor in graph]
        found = [list(tensor.shape) for tensor in cotangents]
        counts = {shape[0] if shape else -1 for shape in found}
        if [shape[1:] for shape in found] != shapes or len(counts) != 1:
            raise EngineError(
                f"vjp: cotangents [k, ...] were expected for outputs of the shapes {shapes}",
                f"their shapes are {found}",
                "Give one tensor for each output, with the same k in front of all",
            )
        wanted = [i for i, tensor in enumerate(graph) if tensor.requires_grad]
        if not wanted:
            raise no_gradient([layer.name for layer in self._layout.layers], self._layout)
        k = counts.pop()
        layout = self._layout
        result = torch.zeros(k, layout.d, dtype=layout.dtype, device=layout.device)
        one = torch.ones(1, 1, dtype=layout.dtype, device=layout.device)
        live = [[i for i in wanted if not_zero(cotangents[i][j])] for j in range(k)]
        # Whether all layers are reached is a question of all outputs: the rest goes along at last.
        if k:
            live[-1] = [i for i in wanted if i in live[-1] or not any(i in each for each in live)]
        passes = [j for j in range(k) if live[j]]
        seen: set[str] = set()
        with torch.inference_mode(False):
            for j in passes:
                total, last = Sums(one), j == passes[-1]
                self._tape.backward(
                    [graph[i] for i in live[j]],
                    [cotangents[i][j].to(graph[i]) for i in live[j]],
                    Collector(layout, [total], None, seen),
                    keep=keep or not last,
                    check=last,
                )
                result[j] = total.result()[0]
        if not keep:
            self._graph = None
        return result

    def _checked_graph(self) -> tuple[Tensor, ...]:
        asked = "cotangents were to be taken back through a forward pass"
        if self._graph is None:
            raise EngineError(asked, "its graph was freed", "Give keep=True until the last time")
        if self._weight_versions() != self._versions:
            raise EngineError(
                asked,
                "the adapter's weights changed since, and the backward pass would use the new ones",
                "Make the deferred_vjp anew after load() or a training step",
            )
        return self._graph

    def _weight_versions(self) -> list[int]:
        return [parameter._version for parameter in self._layout.parameters()]


def not_zero(x: Tensor) -> bool:
    """Whether some number is not 0, as `x.any()`, which is ten times slower on floats."""
    return bool(x.numel()) and any(bool(end != 0) for end in x.aminmax())
