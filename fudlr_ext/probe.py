"""Whether a decoder layer's own code and ours give the same numbers, tried on random positions.

On the CPU the values are compared: the ops' derivatives are the tests' affair. A GPU's kernels are
emulated by tests and rarely run by them, so there the layer is also differentiated as the engine
does it: backward, tangents, and the derivative of the backward along them, with all positions and
with some wanted, over more positions than one tile of the attention's kernels has.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fudlr_ext.decoder_jvp import LayerTangents, Turn
from fudlr_ext.decoder_layer import HALF, DecoderLayer, Pass
from fudlr_ext.layers import Layout
from fudlr_ext.packed import Packed

ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}  # relative error that rounding explains
ROUNDING_16 = 0.1
POSITIONS = {"cpu": 5, "cuda": 70}
DIRECTIONS = 2


@dataclass(frozen=True)
class Probed:
    """What the probe found of a layer's own code, beside the same numbers.

    Attributes:
        causal_without_mask: Whether its attention is causal where it is given no mask.
        in_tuple: Whether it returns a tuple of its output.
    """

    causal_without_mask: bool
    in_tuple: bool


def first_order_dtype(layers: list[DecoderLayer], device: torch.device) -> torch.dtype | None:
    """Return the 16 bits of all weights beside the adapter's, where products in it are faster.

    That is on a GPU, and for bfloat16 on a CPU with instructions for it: others, and float16 on
    any, are faster in float32. Second derivatives are taken in float32.
    """
    found = _dtypes(layers)
    if len(found) > 1 or not found <= HALF:
        return None
    return found.pop() if device.type != "cpu" or (found <= NATIVE and native_bfloat16()) else None


NATIVE = {torch.bfloat16}
WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of ONEDNN_MAX_CPU_ISA with which torch's products do not use such instructions."""


def native_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, and torch may use them."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return torch.cpu._is_avx512_bf16_supported() and limit not in WITHOUT_BFLOAT16


def _dtypes(layers: list[DecoderLayer]) -> set[torch.dtype]:
    """The dtypes of all weights beside the adapter's."""
    found = {part.base.weight.dtype for layer in layers for part in layer.parts.values()}
    return found | {
        norm.module.weight.dtype
        for layer in layers
        for norm in (*layer.norms, *(layer.head_norms or ()))
    }


def compute_dtype(layers: list[DecoderLayer], layout: Layout) -> torch.dtype | str:
    """Return what fused layers compute in where they are exact, or why they cannot.

    That is float32 for 16 bits: merged weights are made anew in each pass, in whatever dtype.
    """
    found = _dtypes(layers) | {
        part.lora.a.dtype
        for layer in layers
        for part in layer.parts.values()
        if part.lora is not None
    }
    dtype = found.copy().pop() if len(found) == 1 else torch.float32
    if (torch.float64 in found and len(found) > 1) or dtype == torch.float64 != layout.dtype:
        return "float64 is mixed with other dtypes"
    return torch.float32 if dtype in HALF else dtype


def probe(layer: DecoderLayer, dtype: torch.dtype, device: torch.device) -> Probed | None:
    """Return what a layer's own code does, or None where its numbers are not ours, to rounding."""
    trial = _Trial.draw(layer, dtype, device)
    own = layer.module
    if any(p.dtype != dtype for p in own.parameters()):
        own = copy.deepcopy(own).to(dtype)
    try:
        if device.type == "cpu":
            with torch.no_grad():
                x, theirs = trial.x, trial.own(own, trial.x)
                if not _close(Pass(layer, trial.packed, x).out, theirs, theirs - x, dtype):
                    return None
        else:
            with torch.inference_mode(False), _whole_products():
                trials = (trial, trial.of_some_positions())
                if not all(_same_derivatives(layer, own, each) for each in trials):
                    return None
    except Exception:  # whatever other code wants from its caller, it is not the family's
        return None
    return _own_habits(own, trial, dtype)


@torch.no_grad()
def same_in(dtype: torch.dtype, layer: DecoderLayer, device: torch.device) -> bool:
    """Whether a layer in 16 bits gives what it gives in float32, there and back, but for rounding.

    Tried on a GPU alone: of kernels for the CPU the tests know.
    """
    if device.type == "cpu":
        return True
    trial = _Trial.draw(layer, torch.float32, device)
    for each in (trial, trial.of_some_positions()):
        exact, rounded = (_there_and_back(layer, each, kind) for kind in (torch.float32, dtype))
        for one, other in zip(exact, rounded, strict=True):
            if not float((one - other.float()).abs().max()) <= ROUNDING_16 * float(one.abs().max()):
                return False
    return True


def _there_and_back(layer: DecoderLayer, trial: _Trial, dtype: torch.dtype) -> list[Tensor]:
    """Return the inputs of all products and their outputs' gradients, which show every op."""
    packed = replace(trial.packed, cos=trial.packed.cos.to(dtype), sin=trial.packed.sin.to(dtype))
    run = Pass(layer, packed, trial.x.to(dtype))
    found: list[Tensor] = []
    grad = run.backward(lambda use: found.extend((use.x, use.delta)), run.out, True)
    assert grad is not None
    return [*found, run.out, grad]


@torch.no_grad()
def _own_habits(own: nn.Module, trial: _Trial, dtype: torch.dtype) -> Probed:
    x = trial.x
    theirs = trial.own(own, x)
    try:
        without = replace(trial, mask=None).own(own, x)
        causal = _close(without, theirs, theirs - x, dtype)
    except Exception:
        causal = False
    return Probed(causal, isinstance(trial.call(own, x), tuple))


@dataclass(frozen=True)
class _Trial:
    """One sample's positions x [t, d], and what a layer is given with them."""

    x: Tensor
    packed: Packed
    mask: Tensor | None

    @staticmethod
    def draw(layer: DecoderLayer, dtype: torch.dtype, device: torch.device) -> _Trial:
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

    def call(self, own: nn.Module, x: Tensor) -> Any:
        """Return what the layer's own code returns for x [t, d]."""
        angles = (self.packed.cos[None], self.packed.sin[None])
        return own(x[None], attention_mask=self.mask, position_embeddings=angles)

    def own(self, own: nn.Module, x: Tensor) -> Tensor:
        """Return what the layer's own code makes of x [t, d], at the positions wanted."""
        out = self.call(own, x)
        if isinstance(out, tuple):
            (out,) = out
        wanted = self.packed.wanted
        return out[0] if wanted is None else out[0][wanted]


def _close(ours: Tensor, theirs: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    if ours.shape != theirs.shape:
        return False
    return float((theirs - ours).abs().max()) <= ROUNDING[dtype] * float(scale.abs().max())


def _same_derivatives(layer: DecoderLayer, own: nn.Module, trial: _Trial) -> bool:
    """Whether values and derivatives are the same, with δ, x' and δ' random."""
    x, packed = trial.x, trial.packed
    count = x.shape[0] if packed.wanted is None else len(packed.wanted)
    generator = torch.Generator("cpu").manual_seed(1)
    sizes = ((count, x.shape[1]), (DIRECTIONS, *x.shape), (DIRECTIONS, count, x.shape[1]))
    delta, along, changes = (
        torch.randn(size, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
        for size in sizes
    )
    theirs = _own_derivatives(own, trial, delta, along, changes)
    ours = _our_derivatives(layer, trial, delta, along, changes)
    residual = x if packed.wanted is None else x[packed.wanted]
    scales = (theirs[0] - residual, *theirs[1:])
    dtypes = [x.dtype] * len(ours)
    return all(map(_close, ours, theirs, scales, dtypes))


def _own_derivatives(
    own: nn.Module, trial: _Trial, delta: Tensor, along: Tensor, changes: Tensor
) -> tuple[Tensor, ...]:
    """Return f(x), Jᵀδ, and for each direction J x' and (Jᵀδ)' + Jᵀδ', by double backward."""
    x, delta = trial.x.clone().requires_grad_(), delta.clone().requires_grad_()
    bent, moved = [], []
    # The fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        out = trial.own(own, x)
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
    layer: DecoderLayer, trial: _Trial, delta: Tensor, along: Tensor, changes: Tensor
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
