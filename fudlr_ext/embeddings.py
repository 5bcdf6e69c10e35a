"""Adapters on embeddings: LoRA on an embedding, and single trained tokens of it and of the head.

With ids_t the token at position t, δ = ∂ℓ/∂y at the layer's output, f the scale that some models
give their embeddings, e(·) a unit vector:

    LoRA      y = base(ids) + s·(A[:, ids])ᵀ Bᵀ, s = f·scaling:  ∇A = Σ_t (s·Bᵀδ_t) e(ids_t)ᵀ,
              ∇B = Σ_t (s·δ_t) A[:, ids_t]ᵀ
    tokens    y = f·W'[ids], W' the weight with rows K replaced: ∇D = Σ_t e(row of ids_t) (f·δ_t)ᵀ
    tied head y = x W'ᵀ:                                         ∇D = Σ_t δ_t[K] x_tᵀ

The layer's own code runs with the parameters out of the graph, and the factors are made of what
comes back to its output. That its code is one of these is tried on its first input, and after every
change. Padding's row of an embedding gets no gradient, as in torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fudlr_ext.blocks import Adapted, Block, Factors, Lines, refuse
from fudlr_ext.unchanged import Unchanged

Uses = Iterable[tuple[Block, Tensor, Tensor]]
PROOF = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative difference between a layer's own code and ours that rounding explains."""


class Outside(Adapted):
    """A layer that runs its own code, and whose factors are made of its input and δ."""

    def __init__(self, name: str, module: nn.Module, adapter: str) -> None:
        super().__init__(name, module, adapter)
        self._snapshot: Unchanged | None = None

    @abstractmethod
    def factors(self, x: Tensor, delta: Tensor) -> Uses:
        """Yield each block's factors [..., a] and [..., b] from the layer's input and δ."""

    def watched(self) -> tuple[tuple[nn.Module, Factors], ...]:
        return ((self.module, self.factors),)

    @abstractmethod
    def expected(self, x: Tensor) -> Tensor:
        """Return what the layer should make of x."""

    @property
    def base(self) -> Any:
        """The frozen layer under the adapter."""
        return self.module.base_layer

    @property
    def scale(self) -> Any:
        """The factor f."""
        scale = getattr(self.base, "embed_scale", 1.0)
        return scale if isinstance(self.base, nn.Embedding) else 1.0

    def compute(self, own: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Run the layer's own code, its parameters out of the graph.

        Raises:
            UnsupportedLayerError: It is called or computes otherwise than the formulas have it.
        """
        self.check_parameters()
        self.check_call(kwargs)
        if {k for k, v in kwargs.items() if v is not None} - {"adapter_names"} or args:
            refuse(self.name, "it is called with more than its input", "Call it with that alone")
        if torch.is_autocast_enabled(x.device.type) and not isinstance(self.base, nn.Embedding):
            refuse(self.name, "autocast is on, which its code does not follow", "Leave autocast")
        with self.detached():
            out: Tensor = own(x, *args, **kwargs)
        self.prove(x, out)
        return out

    @torch.no_grad()
    def prove(self, x: Tensor, found: Tensor) -> None:
        """Raise where what it `found` is not what the formulas have; tried once after a change."""
        problem = "" if self._snapshot is None else self._snapshot.broken()
        if self._snapshot is not None and not problem:
            return
        options = ("max_norm", "scale_grad_by_freq", "sparse")
        used = [name for name in options if getattr(self.base, name, None)]
        if used:
            refuse(
                self.name,
                f"its base has {used[0]}, so that gradients are not the sum of samples' own",
                "Build the embedding without it",
            )
        expected = self.expected(x)
        limit = PROOF.get(found.dtype, 0.0) * expected.norm()
        same = expected.shape == found.shape and (expected.to(found) - found).norm() <= limit
        if not bool(same):
            refuse(
                self.name,
                "its own code gives other numbers than base and adapter",
                "Look for hooks, patches and variants; take these away, or do not adapt it",
            )
        named = [("it", self.module), ("its base_layer", self.base)]
        self._snapshot = Unchanged(named)
        if self._snapshot.broken():  # proven for this time alone
            self._snapshot = None

    def _padding(self, ids: Tensor) -> Tensor | None:
        padding = getattr(self.base, "padding_idx", None)
        return None if padding is None else ids == padding


class EmbeddingLora(Outside):
    """LoRA on an embedding, A [rank, vocabulary] and B [d_out, rank]."""

    def __init__(self, name: str, module: nn.Module, adapter: str, start: int) -> None:
        super().__init__(name, module, adapter)
        blocks = []
        for part, (owner, key) in zip("AB", self.places(), strict=True):
            a, b = owner._parameters[key].shape  # type: ignore[union-attr]
            blocks.append(Block(f"{name}.lora_embedding_{part}", start, (a, b)))
            start += a * b
        self.blocks = tuple(blocks)

    def places(self) -> tuple[tuple[nn.Module, str], ...]:
        module: Any = self.module
        return (module.lora_embedding_A, self.adapter), (module.lora_embedding_B, self.adapter)

    def expected(self, x: Tensor) -> Tensor:
        a, b = self.weights
        return self.base(x) + F.embedding(x, a.t()) @ b.t() * self._factor()

    def _factor(self) -> Any:
        return self.module.scaling[self.adapter] * self.scale  # type: ignore[index]

    def factors(self, x: Tensor, delta: Tensor) -> Uses:
        a, b = (weight.detach() for weight in self.weights)
        delta = delta.to(b.dtype) * self._factor()
        yield self.blocks[1], delta, F.embedding(x, a.t())
        left = delta @ b
        padding = self._padding(x)
        if padding is not None:
            left = left.masked_fill(padding[..., None], 0.0)
        lines, place = x.unique(return_inverse=True)
        right = F.one_hot(place, len(lines)).to(left.dtype)
        yield Lines.of_block(self.blocks[0], 1, lines), left, right


class TrainedTokens(Outside):
    """Trained rows D [K, d] of an embedding, or of an output matrix tied to it."""

    def __init__(
        self, name: str, module: nn.Module, adapter: str, start: int, tied: Block | None
    ) -> None:
        super().__init__(name, module, adapter)
        tokens: Any = module
        self._indices = list(tokens.token_indices[adapter])
        if len(set(self._indices)) < len(self._indices):
            refuse(name, "it trains one token twice", "Name each index once")
        known = (nn.Embedding, nn.Linear)
        if not isinstance(self.base, known) or getattr(self.base, "bias", None) is not None:
            kind = type(self.base).__name__
            refuse(name, f"it trains single tokens of {kind}", "Train those of an embedding")
        shape = tuple(tokens.trainable_tokens_delta[adapter].shape)
        block = Block(f"{name}.trainable_tokens_delta", start, (shape[0], shape[1]))
        self.blocks = (block if tied is None else tied,)

    def places(self) -> tuple[tuple[nn.Module, str], ...]:
        return ((self.module.trainable_tokens_delta, self.adapter),)  # type: ignore[return-value]

    def expected(self, x: Tensor) -> Tensor:
        weight = self.base.weight.clone()
        weight[self._indices] = self.weights[0].to(weight)
        if isinstance(self.base, nn.Embedding):
            return F.embedding(x, weight) * self.scale
        return F.linear(x, weight)

    def factors(self, x: Tensor, delta: Tensor) -> Uses:
        (block,) = self.blocks
        indices = torch.tensor(self._indices, device=x.device)
        if not isinstance(self.base, nn.Embedding):
            yield block, delta[..., indices], x
            return
        ordered, order = indices.sort()
        place = torch.searchsorted(ordered, x.contiguous()).clamp(max=len(indices) - 1)
        hit = ordered[place] == x
        padding = self._padding(x)
        if padding is not None:
            hit &= ~padding
        lines, place = torch.where(hit, order[place], 0).unique(return_inverse=True)
        left = F.one_hot(place, len(lines)) * hit[..., None]
        yield Lines.of_block(block, 0, lines), left.to(delta.dtype), delta * self.scale
