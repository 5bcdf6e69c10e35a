"""One decoder layer of the Llama family, forward and backward, in as few passes as there can be.

    h₂ = h + O(attention(rotate(Q n), rotate(K n), V n)),  n = norm(h)
    out = h₂ + D(silu(G m) · U m),                          m = norm(h₂)

Linears that share their input are one product. Their LoRA matrices ride in it: the product is with
M = [[W + s B A, s B], [s A, s]], whose upper rows give y, whose lower rows give u = s A x, and
whose upper rows from the left give both ∂x = δ (W + s B A) and v = s Bᵀ δ in the backward. Merging
takes rank · d_in · d_out steps a pass, and saves the products of every position with B and A.

In 16 bits W + s B A would lose what of the adapter is less than half of W's last place, everywhere
in the same direction. There M has W alone, and the adapter's part is added to the product, as peft
does: y += u Bᵀ, and ∂x += v A.

Positions of all samples lie one after the other, without padding. The last layer may be asked for
some positions only: then its queries, and all that follows them, are computed for these alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext.decoder_parts import HeadNorm, gate_backward, gated
from fudlr_ext.layers import LoraLayer
from fudlr_ext.ops._decoder import without_autograd
from fudlr_ext.packed import Packed
from fudlr_ext.products import matmul

ops: Any = torch.ops.fudlr_decoder
HALF = {torch.bfloat16, torch.float16}


@dataclass(frozen=True)
class Part:
    """A linear layer, and its adapter's part where it has one."""

    base: nn.Linear
    lora: LoraLayer | None

    @property
    def rank(self) -> int:
        """The adapter's rank, 0 without one."""
        return 0 if self.lora is None else self.lora.a.shape[0]


class Joint:
    """Linears that share their input, merged with their adapters for one pass.

    Attributes:
        whole: [Σ d_out + Σ rank, d_in + Σ rank], the matrix M above.
        upper: [Σ d_out, d_in + Σ rank], W + s B A beside s B.
        down: [Σ d_out + Σ rank, d_in], W + s B A above s A.
        apart: A [Σ rank, d_in] and B [Σ d_out, Σ rank] where W is not merged with them.
        bias: [Σ d_out + Σ rank], or None.
        outs: Where each linear's outputs begin, and their end.
        ranks: Where each adapter's columns begin, and their end.
    """

    def __init__(self, parts: list[Part], dtype: torch.dtype) -> None:
        self.parts = parts
        first = parts[0].base.weight.detach()
        self.d_in = first.shape[1]
        self.outs, self.ranks = [0], [0]
        for part in parts:
            self.outs.append(self.outs[-1] + part.base.weight.shape[0])
            self.ranks.append(self.ranks[-1] + part.rank)
        self.d_out, rank = self.outs[-1], self.ranks[-1]
        whole = first.new_empty(self.d_out + rank, self.d_in + rank, dtype=dtype)
        whole[:, self.d_in :].zero_()
        self.apart: tuple[Tensor, Tensor] | None = None
        if rank and dtype in HALF:
            self.apart = (whole.new_empty(rank, self.d_in), whole.new_zeros(self.d_out, rank))
        for part, ends in zip(parts, pairwise(self.outs), strict=True):
            if part.lora is None or self.apart is not None:
                whole[slice(*ends), : self.d_in].copy_(part.base.weight.detach())
        exact = torch.float32 if dtype in HALF else dtype
        for lora, rows, ranks in self.adapted():
            own = slice(self.d_out + ranks.start, self.d_out + ranks.stop)
            columns = slice(self.d_in + ranks.start, self.d_in + ranks.stop)
            a, b = lora.a.to(exact), lora.b.to(exact)
            whole[own, : self.d_in] = a * lora.scaling
            whole[rows, columns] = b * lora.scaling
            if self.apart is not None:
                self.apart[0][ranks], self.apart[1][rows, ranks] = a, b
                continue
            weight = lora.base.weight.detach().to(dtype)
            torch.addmm(weight, whole[rows, columns], a, out=whole[rows, : self.d_in])
            whole[own, columns].fill_diagonal_(lora.scaling)
        self.whole = whole
        self.upper, self.down = whole[: self.d_out], whole[:, : self.d_in]
        self.bias = None
        if any(part.base.bias is not None for part in parts):
            self.bias = torch.cat(
                [
                    part.base.bias.detach()
                    if part.base.bias is not None
                    else first.new_zeros(part.base.weight.shape[0])
                    for part in parts
                ]
                + [first.new_zeros(rank)]
            ).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return [y | u] for x [T, d_in]."""
        found = matmul(x, self.down)
        if self.bias is not None:
            found += self.bias
        if self.apart is not None:
            found[:, : self.d_out].addmm_(found[:, self.d_out :], self.apart[1].t())
        return found

    def backward(self, delta: Tensor, below: bool = True) -> tuple[Tensor | None, Tensor]:
        """Return ∂x [T, d_in], or None where it is not wanted below, and v, for δ [T, Σ d_out]."""
        if not below:
            return None, delta @ self.upper[:, self.d_in :]
        found = matmul(delta, self.upper.t())
        e, v = found[:, : self.d_in], found[:, self.d_in :]
        if self.apart is not None:
            e.addmm_(v, self.apart[0])
        return e, v

    def adapted(self) -> Iterator[tuple[LoraLayer, slice, slice]]:
        """Yield the adapters, the rows of their linears' outputs, and those of their u."""
        ends = (pairwise(self.outs), pairwise(self.ranks))
        for part, out, rank in zip(self.parts, *ends, strict=True):
            if part.lora is not None:
                yield part.lora, slice(*out), slice(*rank)


@dataclass(frozen=True)
class Use:
    """A joint linear in a pass there and back: all that its adapters' gradients are made of.

    Attributes:
        joint: The linears.
        x: Their input, [T, d_in].
        u: scaling·A x, [T, Σ rank].
        delta: δ, [T, Σ d_out].
        e: The gradient of x; None: not wanted.
        v: scaling·Bᵀ δ, [T, Σ rank].
        offsets: [n + 1], where each sample's positions begin.
    """

    joint: Joint
    x: Tensor
    u: Tensor
    delta: Tensor
    e: Tensor | None
    v: Tensor
    offsets: Tensor

    def part(self, rows: slice) -> Use:
        """Return the share of some positions."""
        tensors = {name: getattr(self, name)[rows] for name in ("x", "u", "delta", "v")}
        return replace(self, **tensors, e=None if self.e is None else self.e[rows])

    def emit(self, tape: Any) -> None:
        """Hand every adapter's factors over."""
        for lora, rows, ranks in self.joint.adapted():
            factors = (self.u[:, ranks], self.delta[:, rows], self.v[:, ranks])
            tape.receive(lora, self.x, *factors, offsets=self.offsets)


Take = Callable[[Use], None]


@dataclass(frozen=True)
class Norm:
    """(offset + weight) · x · (mean x² + eps)^(-1/2); the offset is 1 in Gemma's."""

    module: nn.Module
    eps: float
    offset: int = 0

    def weight(self, dtype: torch.dtype) -> Tensor:
        """What x is multiplied by, [d]."""
        weight = self.module.weight.detach().to(dtype)  # type: ignore[operator]
        return weight + self.offset if self.offset else weight


@dataclass(frozen=True)
class DecoderLayer:
    """What a decoder layer is made of."""

    module: nn.Module
    parts: dict[str, Part]  # q, k, v, o, gate, up, down
    norms: tuple[Norm, Norm]
    heads: int
    key_heads: int
    scale: float
    width: int  # of a head
    head_norms: tuple[Norm, Norm] | None = None  # of queries and keys
    gelu: bool = False  # GeGLU, not SwiGLU

    @property
    def adapted(self) -> bool:
        """Whether an adapter has a part in it."""
        return any(part.lora is not None for part in self.parts.values())

    def joint(self, dtype: torch.dtype, *names: str) -> Joint:
        """Merge these linears for one pass."""
        return Joint([self.parts[name] for name in names], dtype)


class Pass:
    """One layer's forward pass over x [T, d], with what its backward needs.

    Attributes:
        uses: What a backward pass found at every product, where it was kept.
    """

    @without_autograd
    def __init__(self, layer: DecoderLayer, packed: Packed, x: Tensor) -> None:
        self.layer, self.packed, self.x = layer, packed, x
        self.uses: dict[Joint, Use] | None = None
        self.head_norms: tuple[HeadNorm, HeadNorm] | None = None
        self._keeping = False
        first, second = layer.norms
        self.norms = tuple(norm.weight(x.dtype) for norm in layer.norms)
        self.normed, self.scale, _ = ops.rms_norm(x, None, self.norms[0], first.eps)
        self._project()
        self.attended = ops.attention(*self._attention())
        self.o = layer.joint(x.dtype, "o")
        self.uo = self.o.forward(self.attended)
        residual = x if packed.wanted is None else x[packed.wanted]
        self.normed2, self.scale2, self.x2 = ops.rms_norm(
            self.uo[:, : x.shape[1]], residual, self.norms[1], second.eps
        )
        self.gate_up = layer.joint(x.dtype, "gate", "up")
        self.gu = self.gate_up.forward(self.normed2)
        self.hidden = gated(layer.gelu, self.gu[:, : self.gate_up.d_out])
        self.down = layer.joint(x.dtype, "down")
        self.ud = self.down.forward(self.hidden)
        self.out = self.x2 + self.ud[:, : x.shape[1]]

    @property
    def offsets(self) -> Tensor:
        """Of the positions that go on after the queries."""
        packed = self.packed
        return packed.offsets if packed.wanted_offsets is None else packed.wanted_offsets

    def _project(self) -> None:
        packed, layer = self.packed, self.layer
        if packed.wanted is None:
            self.qkv = layer.joint(self.x.dtype, "q", "k", "v")
            z = self.qkv.forward(self.normed)
            ends = self.qkv.outs
            self._norm_heads(z[:, : ends[1]], z[:, ends[1] : ends[2]])
            ops.rotate_heads(z[:, : ends[2]], packed.cos, packed.sin, False)
            self.q, self.k, self.v = (z[:, i:j] for i, j in pairwise(ends))
            self.u = z[:, ends[-1] :]
            return
        dtype = self.x.dtype
        self.qkv, self.only_q = layer.joint(dtype, "k", "v"), layer.joint(dtype, "q")
        z = self.qkv.forward(self.normed)
        middle, end = self.qkv.outs[1:]
        self.k, self.v, self.u = z[:, :middle], z[:, middle:end], z[:, end:]
        self.some = self.normed[packed.wanted]
        self.at = (packed.cos[packed.wanted], packed.sin[packed.wanted])
        zq = self.only_q.forward(self.some)
        self.q, self.uq = zq[:, : self.only_q.d_out], zq[:, self.only_q.d_out :]
        self._norm_heads(self.q, self.k)
        ops.rotate_heads(self.k, packed.cos, packed.sin, False)
        ops.rotate_heads(self.q, *self.at, False)

    def _norm_heads(self, q: Tensor, k: Tensor) -> None:
        """Normalise the heads of queries and keys in place, where the layer does."""
        if self.layer.head_norms is not None:
            for_q, for_k = self.layer.head_norms
            self.head_norms = (
                HeadNorm(q, for_q.weight(q.dtype), for_q.eps),
                HeadNorm(k, for_k.weight(k.dtype), for_k.eps),
            )

    def _heads_back(self, to_q: Tensor, to_k: Tensor) -> None:
        """The backward pass of that, in place."""
        for norm, grads in zip(self.head_norms or (), (to_q, to_k), strict=False):
            norm.backward(grads, self._keeping)

    def turned_back(self, to_q: Tensor, to_k: Tensor, free: int = 0) -> Tensor:
        """Undo the rotation in cotangents; return those of keys and values, side by side.

        Those of the queries are in front where all positions are wanted, and `free` columns behind.
        """
        packed, width = self.packed, to_k.shape[1]
        if packed.wanted is None:
            columns = to_q.shape[1] + 2 * width
            side = to_q.as_strided((to_q.shape[0], columns + free), to_q.stride())
            ops.rotate_heads(side[:, : columns - width], packed.cos, packed.sin, True)
            return side
        ops.rotate_heads(to_k, packed.cos, packed.sin, True)
        ops.rotate_heads(to_q, *self.at, True)
        return to_k.as_strided((to_k.shape[0], 2 * width + free), to_k.stride())

    def _attention(self) -> tuple[Any, ...]:
        packed, layer = self.packed, self.layer
        limits = packed.limits if packed.wanted is None else packed.limits[packed.wanted]
        sizes = (layer.heads, layer.key_heads, layer.scale)
        return (self.q, self.k, self.v, self.offsets, packed.offsets, limits, *sizes)

    @property
    def joints(self) -> list[Joint]:
        """All of its products."""
        some = [] if self.packed.wanted is None else [self.only_q]
        return [self.qkv, *some, self.o, self.gate_up, self.down]

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, merged weights included."""
        tensors = [each for each in self.__dict__.values() if isinstance(each, Tensor)]
        tensors += [joint.whole for joint in self.joints]
        tensors += [norm.raw for norm in self.head_norms or ()]
        storages = {each.untyped_storage().data_ptr(): each for each in tensors}
        return sum(each.untyped_storage().nbytes() for each in storages.values())

    def part(self, samples: slice) -> Pass:
        """Return the share of some samples, as views."""
        found, packed = copy(self), self.packed
        rows, queries = packed.between(samples)
        found.packed = packed.part(samples)
        if packed.wanted is not None:
            found.at = (self.at[0][queries], self.at[1][queries])
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                setattr(found, name, value[rows if name in _OF_KEYS else queries])
        if self.head_norms is not None:
            for_q, for_k = self.head_norms
            found.head_norms = (for_q.part(queries), for_k.part(rows))
        if self.uses is not None:
            found.uses = {
                joint: use.part(rows if joint is self.qkv else queries)
                for joint, use in self.uses.items()
            }
        return found

    @without_autograd
    def keep(self, delta: Tensor, below: bool) -> Tensor | None:
        """Go back as `backward` does, and keep what it finds."""
        uses: dict[Joint, Use] = {}
        self._keeping = True
        grad = self.backward(lambda use: uses.update({use.joint: use}), delta, below)
        self.uses = uses
        return grad

    @without_autograd
    def backward(self, take: Take, delta: Tensor, below: bool) -> Tensor | None:
        """Hand all uses to `take`; return the gradient of x [T, d] where it is wanted."""
        d, packed, (first, second) = self.x.shape[1], self.packed, self.norms
        e = self._back(take, self.down, (self.hidden, self.ud[:, d:], delta), self.offsets)
        inner = self.gate_up.d_out
        assert e is not None
        to_gu = gate_backward(self.layer.gelu, self.gu[:, :inner], e)
        uses = (self.normed2, self.gu[:, inner:], to_gu)
        e = self._back(take, self.gate_up, uses, self.offsets)
        at_x2 = ops.rms_norm_backward(self.x2, second, self.scale2, e, delta)
        e = self._back(take, self.o, (self.attended, self.uo[:, d:], at_x2), self.offsets)
        to_q, to_k, _ = ops.attention_backward(*self._attention(), e)
        side = self.turned_back(to_q, to_k)
        self._heads_back(to_q, to_k)
        e = self._back(take, self.qkv, (self.normed, self.u, side), packed.offsets, below)
        if packed.wanted is not None:
            eq = self._back(take, self.only_q, (self.some, self.uq, to_q), self.offsets, below)
        if e is None:
            return None
        if packed.wanted is not None and eq is not None:
            e = e.index_add(0, packed.wanted, eq)
            at_x2 = torch.zeros_like(self.x).index_add_(0, packed.wanted, at_x2)
        grad: Tensor = ops.rms_norm_backward(self.x, first, self.scale, e, at_x2)
        return grad

    def _back(
        self,
        take: Take,
        joint: Joint,
        uses: tuple[Tensor, Tensor, Tensor],
        offsets: Tensor,
        below: bool = True,
    ) -> Tensor | None:
        e, v = joint.backward(uses[-1], below)
        take(Use(joint, *uses, e, v, offsets))
        return e


_OF_KEYS = {"x", "normed", "scale", "k", "v", "u"}  # of every position, whatever is wanted
