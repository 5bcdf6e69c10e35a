"""Whether a decoder layer's own code and ours give the same numbers, tried on random positions.

On the CPU the values are compared: the ops' derivatives are the tests' affair. A GPU's kernels are
emulated by tests and rarely run by them, so there the layer is also differentiated as the engine
does it: backward, tangents, and the derivative of the backward along them, with all positions and
with some wanted, over more positions than one tile of the attention's kernels has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fudlr_ext.decoder_jvp import LayerTangents, Turn
from fudlr_ext.decoder_layer import Decoder, Pass
from fudlr_ext.packed import Packed

ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}  # relative error that rounding explains
POSITIONS = {"cpu": 5, "cuda": 70}
DIRECTIONS = 2


def same(layer: Decoder, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether both give the same numbers, to rounding."""
    tensors = [part.base.weight for part in layer.parts.values()]
    tensors += [part.lora.a for part in layer.parts.values() if part.lora is not None]
    tensors += [norm.weight for norm in layer.norms]
    if any(tensor.dtype != dtype or tensor.device != device for tensor in tensors):
        return False
    trial = _Trial.draw(layer, dtype, device)
    try:
        with _evaluated(layer.module):
            if device.type == "cpu":
                with torch.no_grad():
                    x, theirs = trial.x, trial.own(layer, trial.x)
                    ours = Pass(layer, trial.packed, x).out
                return _close(ours, theirs, theirs - x, ROUNDING[dtype])
            with torch.inference_mode(False), _whole_products():
                return all(
                    _same_derivatives(layer, each) for each in (trial, trial.of_some_positions())
                )
    except Exception:  # whatever other code wants from its caller, it is not the family's
        return False


@dataclass(frozen=True)
class _Trial:
    """One sample's positions x [t, d], and what a layer is given with them."""

    x: Tensor
    packed: Packed
    mask: Tensor

    @staticmethod
    def draw(layer: Decoder, dtype: torch.dtype, device: torch.device) -> _Trial:
        """Draw on the CPU, so that all devices are given the same numbers."""
        host: Any = {"device": "cpu"}  # whatever torch.set_default_device says
        numbers: Any = {"generator": torch.Generator("cpu").manual_seed(0), "dtype": dtype, **host}
        t, d = POSITIONS[device.type], layer.parts["q"].base.in_features
        width = layer.parts["q"].base.out_features // layer.heads
        x = torch.randn(1, t, d, **numbers)
        angle = torch.randn(1, t, width // 2, **numbers).repeat(1, 1, 2)
        hidden = torch.ones(t, t, dtype=torch.bool, **host).triu(1)
        mask = torch.zeros(1, 1, t, t, dtype=dtype, **host)
        mask = mask.masked_fill(hidden, torch.finfo(dtype).min)
        ends, limits = torch.tensor([0, t], **host), torch.arange(1, t + 1, **host)
        offsets, limits, cos, sin = (
            each.to(device) for each in (ends, limits, angle.cos(), angle.sin())
        )
        packed = Packed(offsets, limits, cos[0], sin[0], starts=(0, t))
        return _Trial(x[0].to(device), packed, mask.to(device))

    def of_some_positions(self) -> _Trial:
        """Return the same with every third position wanted."""
        wanted = torch.arange(0, self.x.shape[0], 3, device=self.x.device)
        ends = (0, len(wanted))
        some = replace(
            self.packed,
            wanted=wanted,
            wanted_offsets=torch.tensor(ends, device=self.x.device),
            wanted_starts=ends,
        )
        return replace(self, packed=some)

    def own(self, layer: Decoder, x: Tensor) -> Tensor:
        """Return what the layer's own code makes of x, at the positions wanted."""
        packed = self.packed
        angles = (packed.cos[None], packed.sin[None])
        out = layer.module(x[None], attention_mask=self.mask, position_embeddings=angles)
        out = (out[0] if isinstance(out, tuple) else out)[0]
        return out if packed.wanted is None else out[packed.wanted]


def _close(ours: Tensor, theirs: Tensor, scale: Tensor, rounding: float) -> bool:
    return ours.shape == theirs.shape and float((theirs - ours).abs().max()) <= rounding * float(
        scale.abs().max()
    )


def _same_derivatives(layer: Decoder, trial: _Trial) -> bool:
    """Whether values and derivatives are the same, with δ, x' and δ' random."""
    x, packed = trial.x, trial.packed
    count = x.shape[0] if packed.wanted is None else len(packed.wanted)
    generator = torch.Generator("cpu").manual_seed(1)
    sizes = ((count, x.shape[1]), (DIRECTIONS, *x.shape), (DIRECTIONS, count, x.shape[1]))
    delta, along, changes = (
        torch.randn(size, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
        for size in sizes
    )
    theirs = _own_derivatives(layer, trial, delta, along, changes)
    ours = _our_derivatives(layer, trial, delta, along, changes)
    residual = x if packed.wanted is None else x[packed.wanted]
    scales = (theirs[0] - residual, *theirs[1:])
    close = partial(_close, rounding=ROUNDING[x.dtype])
    return all(map(close, ours, theirs, scales))


def _own_derivatives(
    layer: Decoder, trial: _Trial, delta: Tensor, along: Tensor, changes: Tensor
) -> tuple[Tensor, ...]:
    """Return f(x), Jᵀδ, and for each direction J x' and (Jᵀδ)' + Jᵀδ', by double backward."""
    x, delta = trial.x.clone().requires_grad_(), delta.clone().requires_grad_()
    bent, moved = [], []
    # The fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        out = trial.own(layer, x)
        (grad,) = torch.autograd.grad(out, x, delta, create_graph=True)
        for direction, change in zip(along, changes, strict=True):
            back, forth = torch.autograd.grad(
                (grad, out), (x, delta), (direction, change), retain_graph=True
            )
            bent.append(back)
            moved.append(forth)
    return out.detach(), grad.detach(), torch.stack(moved, 1), torch.stack(bent, 1)


@torch.no_grad()
def _our_derivatives(
    layer: Decoder, trial: _Trial, delta: Tensor, along: Tensor, changes: Tensor
) -> tuple[Tensor, ...]:
    """Return the same by the fused pass; the adapters themselves stay as they are."""
    run = Pass(layer, trial.packed, trial.x)
    grad = run.keep(delta, True)
    assert grad is not None
    ends = [part.lora.block_b.slice.stop for part in layer.parts.values() if part.lora is not None]
    nothing = trial.x.new_zeros(1, 1).expand(DIRECTIONS, max(ends, default=0))
    turns = {joint: Turn(joint, nothing, True) for joint in run.joints}
    tangents = LayerTangents(run, turns, along.transpose(0, 1).flatten(0, 1))
    moved = tangents.out.clone()
    free = tangents.free(run.down)
    given = nn.functional.pad(changes.transpose(0, 1).flatten(0, 1), (0, free))
    bent = tangents.back(given, 0)
    assert bent is not None
    shape = (-1, DIRECTIONS, trial.x.shape[1])
    return run.out, grad, moved.view(shape), bent.view(shape)


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Put all that is within in evaluation mode for a while."""
    training = [each for each in module.modules() if each.training]
    try:
        for each in training:
            each.training = False
        yield
    finally:
        for each in training:
            each.training = True


@contextmanager
def _whole_products() -> Iterator[None]:
    """Compute products of float32 in float32 for a while, where the caller allows TF32.

    Its rounding, other for each order of the same sum, would hide what is looked for.
    """
    here: Any = torch.backends.cuda.matmul
    there: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = here.fp32_precision, there.fp32_precision
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to read it where the newer names were told something else
        older = None
    if older is not None:
        torch.set_float32_matmul_precision("highest")  # which sets the newer ones too
    here.fp32_precision = "ieee"
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        here.fp32_precision, there.fp32_precision = before
