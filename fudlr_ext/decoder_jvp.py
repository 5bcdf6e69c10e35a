"""Fused decoder layers along k directions at once, and the derivative of their backward pass.

For y = x Mᵀ with M = W + s B A, u = s A x, cotangent δ and v = s Bᵀ δ, directions A', B' and x',
p = A' x and q = B'ᵀ δ:

    y' = x' Mᵀ + s p Bᵀ + u B'ᵀ,   u' = s (A x' + p)
    e' = δ' M + s q A + v A',      v' = s (Bᵀ δ' + q)      (e = δ M)
    ∇A' = Σ_t v' xᵀ + v x'ᵀ,       ∇B' = Σ_t δ' uᵀ + δ u'ᵀ

so that k Hessian products take two passes of the base weights over k·T rows (Pearlmutter 1994,
R-operator), with p or q as further columns of them: [y' | u'] = [x' | p] Nᵀ + [u B'ᵀ | 0] and
[e' | v'] = [δ' | q] N + [v A' | 0] for N = [[M, s B], [s A, s]]. The Gauss-Newton product has the
terms with δ' and v' alone. Position t has the rows t·k to t·k + k of every array of tangents.
Norms, SwiGLU, rotations and attention are the ops'.

Tangents go through all layers in parts, a few samples each, that stay in cache. δ and v are known
before any tangent is, so that the sums with x' and u' are taken on the way along, and neither is
kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from fudlr_ext.decoder_layer import Joint, Pass, Use, ops
from fudlr_ext.decoder_parts import gate_backward, gate_tangent
from fudlr_ext.ops._decoder import without_autograd
from fudlr_ext.products import added, matmul

PART_BYTES = 6 * 2**20
"""Of the widest array of tangents in a part, for each thread."""


class Turn:
    """A joint linear's k directions, and the sums of what comes back, laid out for few products.

    Args:
        joint: The linears.
        vectors: The directions [k, d].
        second: Whether second derivatives are wanted: the backward pass has free columns for q.
    """

    def __init__(self, joint: Joint, vectors: Tensor, second: bool) -> None:
        self.joint, self.k, self.rank = joint, len(vectors), joint.ranks[-1]
        k, rank, d_in, d_out = self.k, self.rank, joint.d_in, joint.d_out
        self._b = vectors.new_zeros(rank, k, d_out + rank)  # B' of every column of u
        self._a = vectors.new_zeros(rank, k, d_in + rank)  # A' of every column of v
        self._with_delta = []  # Σ u' δ, linear by linear
        for lora, out, inner in joint.adapted():
            self._a[inner, :, :d_in] = lora.block_a.of(vectors).transpose(0, 1)
            self._b[inner, :, out] = lora.block_b.of(vectors).permute(2, 0, 1)
            shape = (k * (inner.stop - inner.start), out.stop - out.start)
            self._with_delta.append(vectors.new_zeros(shape))
        self._with_u = vectors.new_zeros(rank, k, d_out + second * rank)  # Σ u δ'
        self._with_v = torch.zeros_like(self._a)  # Σ v x'
        self._with_x = vectors.new_zeros(k * rank, d_in)  # Σ v' x

    def along(self, x: Tensor, u: Tensor, dx: Tensor | None, use: Use | None) -> Tensor:
        """Return [y' | u'], [T k, Σ d_out + Σ rank].

        Args:
            x: [T, d_in].
            u: [T, Σ rank].
            dx: x' [T k, d_in + Σ rank], whose last columns are free; None: zero.
            use: The primal cotangents, where a Hessian wants the sums with x' and u'.
        """
        joint, rows, k, rank = self.joint, x.shape[0], self.k, self.rank
        if not rank:
            return x.new_zeros(rows * k, joint.d_out) if dx is None else matmul(dx, joint.whole)
        p = x @ self._a.flatten(0, 1)[:, : joint.d_in].t()
        p = p.view(rows, rank, k).transpose(1, 2)
        product = (u @ self._b.flatten(1)).view(rows * k, -1)
        if dx is None:
            product.addmm_(p.reshape(rows * k, rank), joint.whole[:, joint.d_in :].t())
        else:
            dx.view(rows, k, -1)[:, :, joint.d_in :] = p
            product = added(product, dx, joint.whole)
        if use is not None:
            if dx is not None:
                self._with_v.flatten(1).addmm_(use.v.t(), dx.view(rows, -1))
            du = product.view(rows, k, -1)[:, :, joint.d_out :]
            for total, (_, out, inner) in zip(self._with_delta, joint.adapted(), strict=True):
                total.addmm_(du[:, :, inner].reshape(rows, -1).t(), use.delta[:, out])
        return product

    def back(
        self, x: Tensor, u: Tensor, change: Tensor, use: Use | None, below: bool = True
    ) -> Tensor | None:
        """Return e' [T k, d_in] where it is wanted below.

        Args:
            x: [T, d_in].
            u: [T, Σ rank].
            change: δ' [T k, Σ d_out], and for second derivatives Σ rank free columns.
            use: The primal cotangents, for second derivatives; None: k cotangents go back.
            below: Whether e' is wanted.
        """
        joint, rows, k, rank = self.joint, x.shape[0], self.k, self.rank
        matrix = joint.whole[: change.shape[1], 0 if below else joint.d_in :]
        if use is None or not rank:
            product = matmul(change, matrix.t())
        else:
            b = self._b.flatten(0, 1)
            for _, out, inner in joint.adapted():
                each = slice(inner.start * k, inner.stop * k)
                q = (use.delta[:, out] @ b[each, out].t()).view(rows, -1, k).transpose(1, 2)
                change.view(rows, k, -1)[:, :, joint.d_out :][:, :, inner] = q
            if below:
                product = (use.v @ self._a.flatten(1)).view(rows * k, -1)
                product = added(product, change, matrix.t())
            else:
                product = matmul(change, matrix.t())
        if rank:
            dv = product[:, -rank:].reshape(rows, k * rank)
            self._with_x.addmm_(dv.t(), x)
            self._with_u.flatten(1).addmm_(u.t(), change.view(rows, -1))
        return product[:, : joint.d_in] if below else None

    def add_to(self, sums: Tensor) -> None:
        """Add what came back to the parameters' part, [k, d]."""
        k, d_in = self.k, self.joint.d_in
        with_x = self._with_x.view(k, self.rank, d_in)
        for total, (lora, out, inner) in zip(self._with_delta, self.joint.adapted(), strict=True):
            to_a, to_b = lora.block_a.of(sums), lora.block_b.of(sums)
            to_a += with_x[:, inner] + self._with_v[inner, :, :d_in].transpose(0, 1)
            to_b += self._with_u[inner, :, out].permute(1, 2, 0)
            to_b += total.view(k, -1, total.shape[1]).transpose(1, 2)


Turns = dict[Joint, Turn]


class LayerTangents:
    """A part of a layer's pass along the directions, with what the backward pass needs.

    Attributes:
        out: The output's tangents, [T k, d].
    """

    @without_autograd
    def __init__(self, run: Pass, turns: Turns, dx: Tensor | None) -> None:
        self.run, self.turns = run, turns
        self.k = turns[run.down].k
        d, (first, second) = run.x.shape[1], run.norms
        dn = None
        if dx is not None:
            dn = ops.rms_norm_tangent(run.x, first, run.scale, dx, run.qkv.ranks[-1])
        along = self._project(dn)
        attended = ops.attention_tangent(*run._attention(), *along, run.o.ranks[-1])
        dx2 = self._along(run.o, run.attended, run.uo[:, d:], attended)[:, :d]
        if dx is not None:
            dx2 = dx2 + (dx if run.packed.wanted is None else self._some(dx, 0).flatten(0, 1))
        rank = run.gate_up.ranks[-1]
        dn = ops.rms_norm_tangent(run.x2, second, run.scale2, dx2, rank)
        inner = run.gate_up.d_out
        dgu = self._along(run.gate_up, run.normed2, run.gu[:, inner:], dn)[:, :inner]
        hidden = gate_tangent(run.layer.gelu, run.gu[:, :inner], dgu, run.down.ranks[-1])
        self.out = self._along(run.down, run.hidden, run.ud[:, d:], hidden)[:, :d] + dx2
        if run.uses is not None:
            self.dx, self.dx2, self.dgu, self.dqkv = dx, dx2, dgu, along

    def _along(self, joint: Joint, x: Tensor, u: Tensor, dx: Tensor | None) -> Tensor:
        use = None if self.run.uses is None else self.run.uses[joint]
        return self.turns[joint].along(x, u, dx, use)

    def _back(
        self, joint: Joint, x: Tensor, u: Tensor, change: Tensor, below: bool = True
    ) -> Tensor:
        use = None if self.run.uses is None else self.run.uses[joint]
        return self.turns[joint].back(x, u, change, use, below)  # type: ignore[return-value]

    def _some(self, tangents: Tensor, free: int) -> Tensor:
        """The tangents at the wanted positions, with free columns at the right, [W, k, ...]."""
        wide = tangents.view(-1, self.k, tangents.shape[1])
        wanted, width = self.run.packed.wanted, self.run.x.shape[1]
        assert wanted is not None
        found = wide.new_empty(len(wanted), self.k, width + free)
        found[:, :, :width] = wide[wanted, :, :width]
        return found

    def _project(self, dn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tangents of queries, keys and values."""
        run, packed = self.run, self.run.packed
        dz = self._along(run.qkv, run.normed, run.u, dn)
        ends = run.qkv.outs
        if packed.wanted is None:
            self._norm_heads(dz[:, : ends[1]], dz[:, ends[1] : ends[2]])
            ops.rotate_heads(dz[:, : ends[2]], packed.cos, packed.sin, False)
            dq, dk, dv = (dz[:, i:j] for i, j in pairwise(ends))
            return dq, dk, dv
        dk, dv = dz[:, : ends[1]], dz[:, ends[1] : ends[2]]
        some = None if dn is None else self._some(dn, run.only_q.ranks[-1]).flatten(0, 1)
        dq = self._along(run.only_q, run.some, run.uq, some)[:, : run.only_q.d_out]
        self._norm_heads(dq, dk)
        ops.rotate_heads(dk, packed.cos, packed.sin, False)
        ops.rotate_heads(dq, *run.at, False)
        return dq, dk, dv

    def _norm_heads(self, dq: Tensor, dk: Tensor) -> None:
        """Turn tangents of queries and keys into those of their norms, in place."""
        norms = self.run.head_norms or ()
        self.raw = [norm.tangent(d, self.k) for norm, d in zip(norms, (dq, dk), strict=False)]

    def _heads_back(self, to_q: Tensor, to_k: Tensor) -> None:
        """The backward pass of that, in place."""
        curved = self.run.uses is not None
        parts = zip(self.run.head_norms or (), (to_q, to_k), self.raw, strict=False)
        for norm, grads, dx in parts:
            norm.back(grads, self.k, dx if curved else None)

    def free(self, joint: Joint) -> int:
        """Columns that the backward pass wants beside the joint's δ'."""
        return 0 if self.run.uses is None else joint.ranks[-1]

    @without_autograd
    def back(self, change: Tensor, below: int | None) -> Tensor | None:
        """Go back with δ' of the output [T k, d], and free columns for second derivatives.

        Returns:
            Those of x [T k, d] with `below` free columns; None where these are not wanted.
        """
        run, uses, (first, second) = self.run, self.run.uses, self.run.norms
        d, inner = run.x.shape[1], run.gate_up.d_out
        again: tuple[Tensor | None, Tensor | None] = (None, None)
        if uses is not None:
            again = (uses[run.down].e, self.dgu)
        de = self._back(run.down, run.hidden, run.ud[:, d:], change)
        changed = gate_backward(
            run.layer.gelu, run.gu[:, :inner], de, again, self.free(run.gate_up)
        )
        if uses is not None:
            again = (uses[run.gate_up].e, self.dx2)
        de = self._back(run.gate_up, run.normed2, run.gu[:, inner:], changed)
        norm = (run.x2, second, run.scale2)
        change = ops.rms_norm_backward(*norm, de, change[:, :d], *again, self.free(run.o))
        de = self._back(run.o, run.attended, run.uo[:, d:], change)
        at_normed = self._inputs_back(self._attention_back(de), below is not None)
        if below is None:
            return None
        if uses is not None:
            again = (self._at_normed(uses), self.dx)
        given = (run.x, first, run.scale, at_normed)
        found: Tensor = ops.rms_norm_backward(
            *given, self._everywhere(change[:, :d]), *again, below
        )
        return found

    def _at_normed(self, uses: dict[Joint, Use]) -> Tensor | None:
        """The primal cotangent of the first norm's output."""
        run, e = self.run, uses[self.run.qkv].e
        if run.packed.wanted is None or e is None:
            return e
        return e.index_add(0, run.packed.wanted, uses[run.only_q].e)  # type: ignore[arg-type]

    def _attention_back(self, de: Tensor) -> list[Tensor]:
        """Return the changes of the projections' cotangents: of one product, or of two."""
        run, uses = self.run, self.run.uses
        again = (None,) * 4 if uses is None else (uses[run.o].e, *self.dqkv)
        free = self.free(run.qkv)
        to_q, to_k, _ = ops.attention_backward(*run._attention(), de, *again, free)
        side = run.turned_back(to_q, to_k, free)
        self._heads_back(to_q, to_k)
        if run.packed.wanted is None:
            return [side]
        room = to_q.new_empty(to_q.shape[0], to_q.shape[1] + self.free(run.only_q))
        room[:, : to_q.shape[1]] = to_q
        return [side, room]

    def _inputs_back(self, changes: list[Tensor], below: bool) -> Tensor | None:
        run = self.run
        de = self._back(run.qkv, run.normed, run.u, changes[0], below)
        if len(changes) == 1:
            return de
        some = self._back(run.only_q, run.some, run.uq, changes[1], below)
        return de + self._everywhere(some) if below else None

    def _everywhere(self, rows: Tensor) -> Tensor:
        """Rows of the wanted positions at their packed among all, zero elsewhere."""
        wanted = self.run.packed.wanted
        if wanted is None:
            return rows
        full = rows.new_zeros(self.run.x.shape[0], self.k, rows.shape[1])
        return full.index_copy_(0, wanted, rows.reshape(-1, self.k, rows.shape[1])).flatten(0, 1)


class Along:
    """All layers along k directions.

    Attributes:
        out: The last layer's tangents, [T k, d].
    """

    def __init__(self, runs: list[Pass], vectors: Tensor) -> None:
        self._sums = torch.zeros_like(vectors)
        second = runs[0].uses is not None
        self._turns = {j: Turn(j, vectors, second) for run in runs for j in run.joints}
        self._parts: list[list[LayerTangents]] = []
        for samples in _parts(runs, len(vectors)):
            dx, layers = None, []
            for run in runs:
                layers.append(LayerTangents(run.part(samples), self._turns, dx))
                dx = layers[-1].out
            self._parts.append(layers)
        self.out = torch.cat([layers[-1].out for layers in self._parts])

    def back(self, change: Tensor) -> Tensor:
        """Return the parameters' part [k, d] for the last output's δ' [T k, d]."""
        counts = [len(layers[-1].out) for layers in self._parts]
        while self._parts:
            layers = self._parts.pop()
            free = layers[-1].free(layers[-1].run.down)
            at = sum(counts[: len(self._parts)])
            given = change[at : at + counts[len(self._parts)]]
            found: Tensor | None = torch.nn.functional.pad(given, (0, free))
            while layers:
                layer = layers.pop()
                assert found is not None
                found = layer.back(found, layers[-1].free(layers[-1].run.down) if layers else None)
        for turn in self._turns.values():
            turn.add_to(self._sums)
        return self._sums


def _parts(runs: list[Pass], k: int) -> Iterator[slice]:
    """Divide the samples into runs of them whose tangents are small enough for the CPU's cache.

    A GPU is given all at once: it is filled by many rows, and each part would launch its kernels.
    """
    widest = max(joint.d_out for run in runs for joint in run.joints)
    each = max(1, k * widest * runs[0].x.element_size())
    most = PART_BYTES * torch.get_num_threads() // each
    offsets, first = runs[0].packed.starts, 0
    if runs[0].x.device.type != "cpu":
        most = offsets[-1]
    for i in range(1, len(offsets)):
        if i + 1 == len(offsets) or offsets[i + 1] - offsets[first] > most:
            yield slice(first, i)
            first = i
