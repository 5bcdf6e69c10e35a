"""The engine held to autograd on batches of one: gradients, Hessian and Gauss-Newton products.

The truth is the model's own code in float64. What float32 itself loses is measured with plain
autograd, and an engine's error may be four times that, or `FLOOR`: rounding of sums in another
order. Many models compute norms, softmax and rotation in float32 whatever their dtype, so that the
floor is the same for both. Where a model's own code fails or gives NaN in float64 (eager attention
masks rows of padding with numbers that its float32 softmax cannot hold), float32 is held to plain
autograd in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fudlr_ext import Engine, EngineError, label_logits, label_loss

Batch = dict[str, Any]
Forward = Callable[[nn.Module, Batch], Tensor]
VOCABULARY, SAMPLES, POSITIONS = 48, 3, 7
FLOOR = {"gradients": 1e-5, "hessian": 1e-4, "gauss_newton": 1e-4}


def batches() -> dict[str, Batch]:
    """A batch without padding, and one with padding on each side."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (SAMPLES, POSITIONS), generator=generator)
    labels = torch.where(torch.arange(POSITIONS) >= POSITIONS - 3, ids, -100)
    found = {"unpadded": {"input_ids": ids, "labels": labels}}
    for side, place in (("right", slice(-2, None)), ("left", slice(2))):
        mask = torch.ones_like(ids)
        mask[1, place] = 0
        kept = torch.where(mask == 1, labels, -100)
        found[side] = {"input_ids": ids * mask, "attention_mask": mask, "labels": kept}
    return found


def one(batch: Batch, i: int) -> Batch:
    """Sample i of a batch."""
    return {key: value[i : i + 1] for key, value in batch.items()}


class Plain:
    """Autograd on batches of one sample, by the model's own code.

    Args:
        model: In evaluation mode.
        own: The adapter's parameters, in the engine's order.
        forward: Gives the logits.
    """

    def __init__(self, model: nn.Module, own: list[nn.Parameter], forward: Forward) -> None:
        self.model, self.own, self.forward = model, own, forward
        for p in own:
            p.requires_grad_(True)

    def flat(self, outputs: Any, given: Any = None, **options: Any) -> Tensor:
        found = torch.autograd.grad(
            outputs, self.own, given, allow_unused=True, materialize_grads=True, **options
        )
        return torch.cat([g.flatten() for g in found])

    def gradients(self, batch: Batch) -> Tensor:
        rows = []
        for i in range(SAMPLES):
            alone = one(batch, i)
            loss = label_loss(self.forward(self.model, alone), alone)
            rows.append(self.flat(loss.sum()).detach())
        return torch.stack(rows)

    def hessian(self, batch: Batch, vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for i in range(SAMPLES):
            alone = one(batch, i)
            with sdpa_kernel(SDPBackend.MATH):
                loss = label_loss(self.forward(self.model, alone), alone).sum() / SAMPLES
            total += self.flat(self.flat(loss, create_graph=True) @ vector).detach()
        return total

    def gauss_newton(self, batch: Batch, vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for i in range(SAMPLES):
            alone = one(batch, i)
            with sdpa_kernel(SDPBackend.MATH):
                outputs = self.forward(self.model, alone)
            cotangent = torch.zeros_like(outputs, requires_grad=True)
            pulled = self.flat(outputs, cotangent, create_graph=True)
            (forth,) = torch.autograd.grad(pulled, cotangent, vector, retain_graph=True)
            at = outputs.detach().requires_grad_()
            loss = label_loss(at, alone).sum() / SAMPLES
            (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
            (curved,) = torch.autograd.grad(gradient, at, forth)
            total += self.flat(outputs, curved).detach()
        return total


def left_out(model: nn.Module, engine: Engine) -> list[str]:
    """Names of parameters that train, and are no part of the engine's."""
    own = {id(p) for p in engine.parameters()}
    return [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own]


def judge(model: nn.Module, forward: Forward = label_logits) -> dict[str, Any]:
    """Compare the engine with the truth, in float32 and float64, on all batches.

    `refused` where the engine said so in an `EngineError` (by its constructor or its first pass),
    `wrong` where a figure is off or another error came, and else `exact`.
    """
    model.eval()
    try:
        engine = Engine(model)
        if missed := left_out(model, engine):
            return {"result": "wrong", "said": f"{len(missed)} parameters left out: {missed[:2]}"}
        return _Judged(model, engine, forward).row()
    except EngineError as error:
        return refused(error)
    except NoTruthError as error:
        return {"result": "not built", "said": str(error)}
    except Exception as error:
        return {"result": "wrong", "said": _line("an error without words", error)}


def refused(error: Any) -> dict[str, Any]:
    """The row of what an error of three parts refused, in its words without what was asked."""
    said = f"{error.found}. {error.remedy}".replace("base_model.model.", "")
    return {"result": "refused", "said": said}


class NoTruthError(Exception):
    """The model's own code cannot be differentiated."""


class _Judged:
    """One model's errors, and the first that is too large."""

    def __init__(self, model: nn.Module, engine: Engine, forward: Forward) -> None:
        exact = copy.deepcopy(model).double()
        self.engines = {"float32": engine, "float64": Engine(exact)}
        self.plain = {
            name: Plain(each, self.engines[name].parameters(), forward)
            for name, each in (("float32", model), ("float64", exact))
        }
        self.forward, self.d = forward, engine.d
        self.worst: dict[str, float] = {}
        self.wrong = ""
        self.fused = True

    def row(self) -> dict[str, Any]:
        """Judge everything."""
        for side, batch in batches().items():
            for what in FLOOR if side == "left" else ("gradients",):
                self.compare(what, side, batch)
        if self.wrong:
            return {"result": "wrong", "said": self.wrong, "errors": self.worst}
        return {"result": "exact", "errors": self.worst, "fused": self.fused}

    def compare(self, what: str, side: str, batch: Batch) -> None:
        """Judge one kind of product on one batch."""
        vector = torch.randn(self.d, generator=torch.Generator().manual_seed(1))
        plain = {"float32": _plain(self.plain["float32"], what, batch, vector)}
        limit, truth = 4 * FLOOR[what], plain["float32"].double()
        with suppress(NoTruthError):
            plain["float64"] = _plain(self.plain["float64"], what, batch, vector.double())
            limit, truth = FLOOR[what], plain["float64"]
        limits = {"float32": max(4 * _off(plain["float32"], truth), limit), "float64": limit}
        for name in plain:
            engine = self.engines[name]
            off = _off(_ours(engine, self.forward, what, batch, vector), truth)
            key = f"{what} {name}"
            self.worst[key] = max(self.worst.get(key, 0.0), off)
            if name == "float32" and what == "gradients":
                self.fused = self.fused and engine.report().fused_layers > 0
            if not off <= limits[name]:
                said = f"{what} of the {side} batch in {name} off by {off:.2g}"
                self.wrong = self.wrong or f"{said}; {engine.report()}"


def _plain(plain: Plain, what: str, batch: Batch, vector: Tensor) -> Tensor:
    try:
        given = (batch,) if what == "gradients" else (batch, vector)
        found: Tensor = getattr(plain, what)(*given)
    except Exception as error:
        raise NoTruthError(_line(f"no truth of {what}", error)) from error
    if not found.isfinite().all():
        raise NoTruthError(f"{what} by the model's own code are NaN or infinite")
    return found


def _ours(engine: Engine, forward: Forward, what: str, batch: Batch, vector: Tensor) -> Tensor:
    if what == "gradients":
        return engine.sample_grads(forward, label_loss, batch)
    product = engine.hvp if what == "hessian" else engine.ggn_vp
    return product(forward, label_loss, batch, vector[None])[0]


def _off(got: Tensor, truth: Tensor) -> float:
    return float((got.double() - truth).norm() / truth.norm().clamp_min(1e-30))


def _line(what: str, error: Exception) -> str:
    return f"{what}: {type(error).__name__}: {error}".splitlines()[0][:300]
