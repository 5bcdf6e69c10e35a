"""Per-sample gradients of a LoRA model, and products with them and with its curvature."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext import curvature
from fudlr_ext.backward_hook import BackwardHook
from fudlr_ext.blocks import Sides
from fudlr_ext.curvature import Forward, Loss
from fudlr_ext.errors import EngineError
from fudlr_ext.layers import Layout
from fudlr_ext.passes import Passes, Report
from fudlr_ext.reducers import Dots, FisherProduct, Reducer, Rows, Sketch, Sums
from fudlr_ext.vjp import DeferredVjp


class Engine:
    """The engine over one adapter of an unmodified Hugging Face + peft model.

    The model is used as it is and left as it was found: no flag, mode, hook or weight changes.
    It runs in evaluation mode (no dropout), whatever mode it is in. The adapter must be the only
    active one on its layers; parameters need not require gradients.

    d counts all parameters of the adapter: LoRA matrices of linear layers and embeddings, biases of
    B, single trained tokens. Their order in a flat vector is that of `model.named_modules()`, a
    layer's A before its B, each row by row: `names` lists it. Flat
    vectors and results are float32, and float64 where an adapter's weights are float64.

    `forward(model, batch) -> outputs` and `loss(outputs, batch) -> [n]` are the caller's. The loss
    is one number a sample, not divided by the batch, and sample i must lie in row i of every
    adapted layer's input, which is [n, ...].

    Decoder layers of the Llama family are fused where that gives the same; every other layer runs
    by itself, by the model's own code where something is hooked, patched or otherwise unusual.
    `report()` says which, and why.

    Args:
        model: A peft model, or any module whose LoRA layers have peft's shape.
        adapter: Which of its adapters.
        check: Whether one sample's gradient of the first batch is compared with plain autograd's,
            by the model's own code. It costs about one training step on that batch, once.

    Raises:
        UnsupportedLayerError: Other adapters than LoRA, compiled models, quantised layers without
            a gradient, trained biases or copies of layers, tied adapters.
        EngineError: No LoRA layer of that adapter.
    """

    def __init__(self, model: nn.Module, adapter: str = "default", *, check: bool = False) -> None:
        self.model = model
        self.adapter = adapter
        self._layout = Layout(model, adapter)
        self._passes = Passes(model, self._layout, check)

    @property
    def names(self) -> list[str]:
        """The LoRA matrices in flat order, named as in the files that peft saves."""
        return list(self._layout.names)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of every LoRA matrix, in flat order."""
        return {block.name: block.shape for block in self._layout.blocks}

    @property
    def d(self) -> int:
        """The number of LoRA parameters."""
        return self._layout.d

    @property
    def n_params(self) -> int:
        """The number of LoRA parameters; another name for `d`."""
        return self._layout.d

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of flat vectors and results."""
        return self._layout.dtype

    @property
    def device(self) -> torch.device:
        """The device of the LoRA parameters, where results are."""
        return self._layout.device

    def parameters(self) -> list[nn.Parameter]:
        """Return the model's own LoRA parameters, in flat order."""
        return self._layout.parameters()

    def theta(self) -> Tensor:
        """Return a copy of the model's LoRA parameters as one vector [d]."""
        return torch.cat([p.detach().reshape(-1).to(self.dtype) for p in self.parameters()])

    def load(self, vector: Tensor) -> None:
        """Write the vector [d] into the model's LoRA parameters."""
        vector = self._vectors("load", "vector", vector, (self.d,))
        if not vector.isfinite().all():
            raise EngineError(
                "load: the adapter's parameters were to be replaced",
                f"{int((~vector.isfinite()).sum())} of the {self.d} numbers are NaN or infinite",
                "Look for where the vector was computed; the model was left as it was",
            )
        for block, parameter in zip(self._layout.blocks, self.parameters(), strict=True):
            parameter.detach().copy_(block.of(vector).view_as(parameter))

    def flatten(self, source: Mapping[str, Tensor] | nn.Module) -> Tensor:
        """Return the LoRA parameters of a state dict or a model as one vector [d].

        Keys may be those that peft saves ("….lora_A.weight") or a model's own
        ("….lora_A.default.weight"); other parameters and adapters are passed over.
        """
        state = source.state_dict() if isinstance(source, nn.Module) else source
        trained = r"(.*\.(?:lora_(?:embedding_)?[AB]|trainable_tokens_delta))"
        pattern = re.compile(rf"{trained}(?:\.{re.escape(self.adapter)})?(\.(?:weight|bias))?")
        found = {
            f"{match[1]}{match[2] or ''}": tensor
            for key, tensor in state.items()
            if (match := pattern.fullmatch(key))
        }
        for name in self._layout.tied:  # another name of the same parameter
            found.pop(name, None)
        missing = [name for name in self.names if name not in found]
        foreign = [name for name in found if name not in set(self.names)]
        if missing or foreign:
            raise EngineError(
                f"flatten: the {len(self.names)} matrices of adapter {self.adapter!r} were "
                "looked for",
                f"{len(missing)} are missing (first: {missing[:1]}), {len(foreign)} belong to "
                f"no layer of the model (first: {foreign[:1]})",
                "Use the adapter with the model that it was trained on",
            )
        for block in self._layout.blocks:
            given = tuple(found[block.name].shape)
            if block.shape not in {given, (*given, 1)}:
                raise EngineError(
                    f"flatten: {block.name} was to be {list(block.shape)}",
                    f"it is {list(found[block.name].shape)}",
                    "Use an adapter of the same rank and base model",
                )
        parts = [found[name].detach().reshape(-1) for name in self.names]
        return torch.cat([part.to(self._layout.device, self.dtype) for part in parts])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return [..., d] as matrices [..., a, b], named and ordered as in `names` (views)."""
        if vector.shape[-1:] != (self.d,):
            raise EngineError(
                f"unflatten: a vector of {self.d} numbers was expected",
                f"its shape is {list(vector.shape)}",
                "Make it with flatten() or theta() of the same model",
            )
        return {block.name: block.of(vector) for block in self._layout.blocks}

    def reduce(
        self, forward: Forward, loss: Loss, batch: Any, reducers: Iterable[Reducer]
    ) -> Tensor:
        """Give one batch's per-sample gradients to several reducers in one pass.

        Returns:
            The losses [n], detached; the reducers hold their results.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite.
            NoGradientError: An adapted layer took no part in the loss.
        """
        return self._passes.first_order(forward, loss, batch, reducers)

    def report(self) -> Report:
        """Return which way the last call's pass went, and why; `str()` of it is a sentence."""
        return self._passes.report

    def reports(self) -> list[Report]:
        """Return `report` of the last pass of each kind (first order, vjp, …), the latest last."""
        return list(self._passes.reports.values())

    def backward_hook(self, names: Collection[str] | None = None) -> BackwardHook:
        """Hook onto the model's own training, and take per-sample gradients from its backward pass.

        Args:
            names: The LoRA matrices whose factors are taken; all of them where None.
        """
        return BackwardHook(self._layout, self.names if names is None else names)

    def sample_grads(self, forward: Forward, loss: Loss, batch: Any) -> Tensor:
        """Return the per-sample gradients g_i = ∇ℓ_i, [n, d]."""
        rows = Rows()
        self.reduce(forward, loss, batch, [rows])
        return rows.result()

    def sample_dots(self, forward: Forward, loss: Loss, batch: Any, vectors: Tensor) -> Tensor:
        """Return ⟨g_i, v_j⟩ for vectors [k, d], as [n, k]; no gradient is stored."""
        dots = Dots(self._vectors("sample_dots", "vectors", vectors, (None, self.d)))
        self.reduce(forward, loss, batch, [dots])
        return dots.result()

    def grad_sum(self, forward: Forward, loss: Loss, batch: Any, weights: Tensor) -> Tensor:
        """Return Σ_i w_i g_i for weights [n], as [d], or for several [w, n], as [w, d]."""
        shape = (None,) if weights.dim() == 1 else (None, None)
        weights = self._vectors("grad_sum", "weights", weights, shape)
        sums = Sums(weights if weights.dim() == 2 else weights[None])
        self.reduce(forward, loss, batch, [sums])
        return sums.result() if weights.dim() == 2 else sums.result()[0]

    def sample_sketch(
        self, forward: Forward, loss: Loss, batch: Any, projection: Mapping[str, Sides]
    ) -> Tensor:
        """Return the projected per-sample gradients, [n, p]; the gradients never exist.

        Args:
            forward: Returns a tensor, or a tuple of tensors.
            loss: Returns [n].
            batch: What they take.
            projection: P_l [q, a] and P_r [r, b] of every LoRA matrix [a, b] that is kept, by its
                name in `names`; None leaves a side as it is. p counts the numbers of all P_l G P_rᵀ
                in flat order of the matrices, each row by row.
        """
        sketch = Sketch(projection)
        self.reduce(forward, loss, batch, [sketch])
        return sketch.result()

    def outputs(self, forward: Forward, batch: Any) -> Any:
        """Return what `forward` returns, without a graph, over fused layers where these serve."""
        return self._passes.outputs(forward, batch)

    def vjp(self, forward: Forward, batch: Any, cotangents: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return Σ cotangent · ∂outputs/∂θ for k cotangents, [k, d].

        Args:
            forward: Returns a tensor, or a tuple of tensors.
            batch: What it takes.
            cotangents: [k, ...outputs], one such tensor for every output tensor.
        """
        return self.deferred_vjp(forward, batch).vjp(cotangents)

    def deferred_vjp(self, forward: Forward, batch: Any) -> DeferredVjp:
        """Run `forward` and keep its graph: `outputs` now, `vjp(cotangents)` later.

        For what depends on several batches' outputs together, such as a metric over many users.
        """
        return self._passes.deferred(forward, batch)

    def fisher_vp(
        self,
        forward: Forward,
        loss: Loss,
        batch: Any,
        vectors: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the empirical Fisher's (1/n) Σ_i w_i g_i ⟨g_i, v⟩ for vectors [k, d], as [k, d].

        The weights [n] are ones where None; T for a loss that is the mean of T terms, such as a
        title's tokens, makes the product one with the curvature (docs/curvature.md).
        """
        vectors = self._vectors("fisher_vp", "vectors", vectors, (None, self.d))
        if weights is not None:
            weights = self._vectors("fisher_vp", "weights", weights, (None,))
        product = FisherProduct(vectors, weights)
        self.reduce(forward, loss, batch, [product])
        return product.result()

    def ggn_vp(self, forward: Forward, loss: Loss, batch: Any, vectors: Tensor) -> Tensor:
        """Return the generalised Gauss-Newton's products for vectors [k, d], as [k, d].

        The matrix is Jᵀ H J (Schraudolph 2002), with J the Jacobian of the outputs in θ and H the
        Hessian of the mean loss in the outputs, both exact; no damping.
        """
        return self._curved("ggn_vp", forward, loss, batch, vectors)

    def ggn_form(self, forward: Forward, loss: Loss, batch: Any, vectors: Tensor) -> Tensor:
        """Return vᵀ Jᵀ H J v for vectors [k, d], as [k]: `ggn_vp` times the vectors, for less."""
        return self._curved("ggn_form", forward, loss, batch, vectors)

    def hvp(self, forward: Forward, loss: Loss, batch: Any, vectors: Tensor) -> Tensor:
        """Return the exact Hessian's products of the mean loss for vectors [k, d], as [k, d]."""
        return self._curved("hvp", forward, loss, batch, vectors)

    def _curved(
        self, name: str, forward: Forward, loss: Loss, batch: Any, vectors: Tensor
    ) -> Tensor:
        vectors = self._vectors(name, "vectors", vectors, (None, self.d))
        self._layout.check_whole()
        self._passes.check(forward, loss, batch)
        product = getattr(curvature, name)

        def run(theta: Tensor, recorder: curvature.Recorder | None) -> Tensor:
            parts = (lambda: forward(self.model, batch), lambda outputs: loss(outputs, batch))
            return product(self._layout, theta, recorder, parts, vectors)

        return self._passes.product(name, self.theta(), run)

    def _vectors(self, op: str, name: str, given: Tensor, shape: tuple[int | None, ...]) -> Tensor:
        fits = given.dim() == len(shape) and all(
            wanted is None or size == wanted
            for size, wanted in zip(given.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise EngineError(
                f"{op}: {name} of shape [{wanted}] were expected",
                f"their shape is {list(given.shape)}",
                "Each row is one; d is the number of LoRA parameters, n of samples",
            )
        return given.detach().to(self._layout.device, self.dtype)
