"""Fused decoder layers along k directions at once, and the derivative of their backward pass.

For y = x Mᵀ with M = W + s B A, u = s A x, cotangent δ and v = s Bᵀ δ, directions A', B' and x':

    y' = x' Mᵀ + u B'ᵀ + p Bᵀ,   u' = s A x' + p,   p = s A' x
    e' = δ' M + q A + v A',       v' = s Bᵀ δ' + q,  q = s B'ᵀ δ      (e = δ M)
    ∇A' = Σ_t v' xᵀ + v x'ᵀ,      ∇B' = Σ_t δ' uᵀ + δ u'ᵀ

so that k Hessian products take two passes of the base weights over k·T rows (Pearlmutter 1994,
R-operator). The Gauss-Newton product has the terms with δ' and v' alone. Position t has the rows
t·k to t·k + k of every array of tangents. Norms, SwiGLU, rotations and attention are the ops'.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fudlr_ext.decoder import Decoder, Joint, Pass, Places, ops


@dataclass
class Use:
    """One use of a joint linear in a pass: its input and u, with their tangents."""

    joint: Joint
    x: Tensor  # [T, d_in]
    u: Tensor  # [T, Σ rank]
    dx: Tensor | None  # [T k, d_in]; None: zero
    du: Tensor  # [T, k, Σ rank]


class Directions:
    """k directions of the adapter's parameters [k, d], and the sums of what comes back."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors, self.k = vectors, vectors.shape[0]
        self.sums = torch.zeros_like(vectors)

    def along(self, joint: Joint, x: Tensor, u: Tensor, dx: Tensor | None) -> tuple[Tensor, Use]:
        """Return y' [T k, Σ d_out], and what its way back needs."""
        k, rows = self.k, x.shape[0]
        if dx is None:
            product = x.new_zeros(rows * k, joint.d_out + joint.ranks[-1])
        else:
            product = dx @ joint.down.t()
        wide = product.view(rows, k, -1)
        for i, part in enumerate(joint.parts):
            if part.lora is None:
                continue
            out, inner = slice(*joint.outs[i : i + 2]), slice(*joint.ranks[i : i + 2])
            da, db = (b.of(self.vectors) for b in (part.lora.block_a, part.lora.block_b))
            p = torch.mm(x, da.flatten(0, 1).t()).mul_(part.lora.scaling).view(rows, k, -1)
            wide[:, :, joint.d_out :][:, :, inner] += p
            own = u[:, inner]
            for j in range(k):
                both = torch.cat([own, p[:, j]], 1)
                wide[:, j, out].addmm_(both, torch.cat([db[j], part.lora.b], 1).t())
        return product[:, : joint.d_out], Use(joint, x, u, dx, wide[:, :, joint.d_out :])

    def back(
        self, use: Use, delta: Tensor | None, change: Tensor, below: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Add ∇A', ∇B' to the sums; return e [T, d_in] and e' [T k, d_in] where wanted below.

        Args:
            use: The linear, and how it was used.
            delta: δ [T, Σ d_out]; None for a backward pass of k cotangents, without derivative.
            change: δ' [T k, Σ d_out].
            below: Whether e and e' are wanted.
        """
        joint, rows, k = use.joint, use.x.shape[0], self.k
        weights = joint.upper if below else joint.upper[:, joint.d_in :]
        shift = 0 if not below else joint.d_in
        product = change @ weights
        wide = product.view(rows, k, -1)
        primal = None if delta is None else delta @ weights
        for i, part in enumerate(joint.parts):
            if part.lora is None:
                continue
            out, inner = slice(*joint.outs[i : i + 2]), slice(*joint.ranks[i : i + 2])
            da, db = (b.of(self.vectors) for b in (part.lora.block_a, part.lora.block_b))
            to_a, to_b = (b.of(self.sums) for b in (part.lora.block_a, part.lora.block_b))
            dv, u = wide[:, :, shift:][:, :, inner], use.u[:, inner]
            changed = change.view(rows, k, -1)[:, :, out]
            if delta is not None and primal is not None:
                own, v = delta[:, out], primal[:, shift:][:, inner]
                q = (own @ db.permute(1, 0, 2).flatten(1)).mul_(part.lora.scaling)
                q = q.view(rows, k, -1)
                dv += q
                if below:
                    for j in range(k):
                        both = torch.cat([q[:, j], v], 1)
                        wide[:, j, :shift].addmm_(both, torch.cat([part.lora.a, da[j]]))
                if use.dx is not None:
                    to_a += _transposed(use.dx.view(rows, k, -1), v).transpose(1, 2)
                to_b += _transposed(use.du[:, :, inner], own).transpose(1, 2)
            to_a += _transposed(dv, use.x)
            to_b += _transposed(changed, u)
        if not below:
            return None, None
        return (None if primal is None else primal[:, :shift]), product[:, :shift]


def _transposed(many: Tensor, one: Tensor) -> Tensor:
    """Σ_t many[t, j]ᵀ one[t] for many [T, k, a] and one [T, b], [k, a, b]."""
    k, a = many.shape[1:]
    if many.stride(1) == a * many.stride(2):
        flat: Tensor = many.flatten(1).t() @ one
        return flat.view(k, a, -1)
    return torch.stack([many[:, j].t() @ one for j in range(k)])


class LayerTangents:
    """One layer's pass along the directions, with what the way back needs."""

    def __init__(self, run: Pass, to: Directions, dx: Tensor | None) -> None:
        self.run, self.to, self.dx = run, to, dx
        d, places, (first, second) = run.x.shape[1], run.places, run.layer.norms
        dn = None if dx is None else ops.rms_norm_tangent(run.x, first.weight, run.scale, dx)
        self._project(dn)
        attended = ops.attention_tangent(*run._attention(), self.dq, self.dk, self.dv)
        self.dx2, self.o = to.along(run.o, run.attended, run.uo[:, d:], attended)
        if dx is not None:
            self.dx2 = self.dx2 + (dx if places.wanted is None else self._some(dx))
        dn = ops.rms_norm_tangent(run.x2, second.weight, run.scale2, self.dx2)
        inner = run.gate_up.d_out
        self.dgu, self.gate_up = to.along(run.gate_up, run.normed2, run.gu[:, inner:], dn)
        self.gu = run.gu[:, :inner]
        hidden = ops.swiglu_tangent(self.gu, self.dgu)
        out, self.down = to.along(run.down, run.hidden, run.ud[:, d:], hidden)
        self.out = self.dx2 + out

    def _some(self, tangents: Tensor) -> Tensor:
        """The tangents at the wanted positions."""
        wide = tangents.view(-1, self.to.k, tangents.shape[1])
        return wide[self.run.places.wanted].flatten(0, 1)

    def _project(self, dn: Tensor | None) -> None:
        run, to, places = self.run, self.to, self.run.places
        dz, self.qkv = to.along(run.qkv, run.normed, run.u, dn)
        ends = run.qkv.outs
        if places.wanted is None:
            ops.rotate_heads(dz[:, : ends[2]], places.cos, places.sin, False)
            self.dq, self.dk, self.dv = (dz[:, i:j] for i, j in pairwise(ends))
            return
        self.dk, self.dv = dz[:, : ends[1]], dz[:, ends[1] :]
        ops.rotate_heads(self.dk, places.cos, places.sin, False)
        some = None if dn is None else self._some(dn)
        self.dq, self.only_q = to.along(run.only_q, run.some, run.uq, some)
        ops.rotate_heads(self.dq, *run.at, False)

    def back(
        self, delta: Tensor | None, change: Tensor, below: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Go back with δ and δ' of the output; return those of x where they are wanted.

        Without δ, k cotangents go back as they are.
        """
        run, to, (first, second) = self.run, self.to, self.run.layer.norms
        e, de = to.back(self.down, delta, change, True)
        dgu = None if e is None else self.dgu
        to_gu = None if e is None else ops.swiglu_backward(self.gu, e)
        changed = ops.swiglu_backward(self.gu, de, e, dgu)
        e, de = to.back(self.gate_up, to_gu, changed, True)
        norm = (run.x2, second.weight, run.scale2)
        at_x2 = None if e is None else ops.rms_norm_backward(*norm, e, delta)
        change = ops.rms_norm_backward(*norm, de, change, e, None if e is None else self.dx2)
        e, de = to.back(self.o, at_x2, change, True)
        sides, dsides = self._attention_back(e, de)
        e, de = self._inputs_back(sides, dsides, below)
        if not below:
            return None, None
        assert self.dx is not None
        assert de is not None
        norm = (run.x, first.weight, run.scale)
        at_x = None
        if e is not None:
            at_x = ops.rms_norm_backward(*norm, e, self._everywhere(at_x2, 1))
        dx = None if e is None else self.dx
        return at_x, ops.rms_norm_backward(*norm, de, self._everywhere(change, to.k), e, dx)

    def _attention_back(self, e: Tensor | None, de: Tensor | None) -> tuple[list[Tensor], ...]:
        """Return cotangents of what the projections gave, and their changes."""
        given, dsides, sides = self.run._attention(), [], []
        along = (None,) * 3 if e is None else (self.dq, self.dk, self.dv)
        dsides = self._turned_back(ops.attention_backward(*given, de, e, *along))
        if e is not None:
            sides = self._turned_back(ops.attention_backward(*given, e))
        return sides, dsides

    def _turned_back(self, cotangents: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        to_q, to_k, _ = cotangents
        places, width = self.run.places, to_k.shape[1]
        if places.wanted is None:
            columns = to_q.shape[1] + 2 * width
            side = to_q.as_strided((to_q.shape[0], columns), to_q.stride())
            ops.rotate_heads(side[:, : columns - width], places.cos, places.sin, True)
            return [side]
        ops.rotate_heads(to_k, places.cos, places.sin, True)
        ops.rotate_heads(to_q, *self.run.at, True)
        return [to_k.as_strided((to_k.shape[0], 2 * width), to_k.stride()), to_q]

    def _inputs_back(
        self, sides: list[Tensor], dsides: list[Tensor], below: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        e, de = self.to.back(self.qkv, sides[0] if sides else None, dsides[0], below)
        if len(dsides) == 1:
            return e, de
        eq, deq = self.to.back(self.only_q, sides[1] if sides else None, dsides[1], below)
        if not below:
            return None, None
        assert de is not None
        de = de + self._everywhere(deq, self.to.k)
        return (None if e is None else e + self._everywhere(eq, 1)), de

    def _everywhere(self, rows: Tensor | None, k: int) -> Tensor:
        """Rows of the wanted positions at their places among all, zero elsewhere."""
        assert rows is not None
        wanted = self.run.places.wanted
        if wanted is None:
            return rows
        full = rows.new_zeros(self.run.x.shape[0], k, rows.shape[1])
        return full.index_copy_(0, wanted, rows.reshape(-1, k, rows.shape[1])).flatten(0, 1)


class Recorder:
    """The decoder layers of one forward pass, each from a leaf of its own, to go along and back.

    Attributes:
        layers: How many there are.
        runs: What each of them computed that ran.
        leaves: Each layer's output, cut off from the graph below; the last one is what the rest of
            the model hangs on.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.runs: list[Pass] = []
        self.leaves: list[Tensor] = []

    def run(self, layer: Decoder, places: Places, x: Tensor) -> Tensor:
        """Compute one layer."""
        self.runs.append(Pass(layer, places, x.detach()))
        self.leaves.append(self.runs[-1].out.detach().requires_grad_())
        return self.leaves[-1]

    def bytes_each(self) -> int:
        """Memory that one direction takes, about."""
        kept = 0
        for run in self.runs:
            tensors = (run.x, run.normed, run.q, run.k, run.v, run.attended, run.x2, run.normed2)
            wide = (run.gu, run.hidden, run.out)
            kept += sum(tensor.numel() for tensor in (*tensors, *wide)) * run.x.element_size()
        return kept

    def along(self, vectors: Tensor) -> Along:
        """Take the tangents for vectors [k, d]."""
        return Along(self.runs, vectors)


class Along:
    """All layers along k directions.

    Attributes:
        out: The last layer's tangents, [T k, d].
    """

    def __init__(self, runs: list[Pass], vectors: Tensor) -> None:
        self.to = Directions(vectors)
        self.layers: list[LayerTangents] = []
        dx = None
        for run in runs:
            if dx is None and not run.layer.adapted:
                continue  # nothing below hangs on the adapter
            self.layers.append(LayerTangents(run, self.to, dx))
            dx = self.layers[-1].out
        assert dx is not None
        self.out: Tensor = dx

    def back(self, delta: Tensor | None, change: Tensor) -> Tensor:
        """Return the parameters' part [k, d] for δ [T, d], or None, and δ' [T k, d]."""
        for place in range(len(self.layers) - 1, -1, -1):
            found = self.layers[place].back(delta, change, place > 0)
            if place:
                assert found[1] is not None
                delta, change = found[0], found[1]
        return self.to.sums
