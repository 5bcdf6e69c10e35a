"""One pass over a model: over fused decoder layers where these serve, else layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fudlr_ext import curvature
from fudlr_ext.blocks import Adapted
from fudlr_ext.capture import Tape, evaluating, replaced
from fudlr_ext.collect import Collector, check_losses, prove_rows, row_weights
from fudlr_ext.curvature import Forward, Loss, Recorder
from fudlr_ext.decoder import Stack, find
from fudlr_ext.errors import EngineError
from fudlr_ext.fused_call import FusedCall, UnservedError
from fudlr_ext.layers import Layout
from fudlr_ext.reducers import Reducer, Sums
from fudlr_ext.vjp import DeferredVjp

T = TypeVar("T")
CHECK = {torch.float64: 1e-6, torch.float32: 1e-3}
CHECK_HALF = 0.2
"""Relative differences of one sample's gradient that rounding explains, by the model's dtype."""
NOISE = 4
"""Times what one more rounding of every module's output changes, for a model in half precision: a
deep one turns it into errors of any size (SmolLM2-135M in bfloat16: .06 to 8, median .22), of
which engine and autograd have each their own. They differed by .1 to 2.2 times that change."""

SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Report:
    """What ran in the last pass of an engine; `str()` says it in a sentence.

    Attributes:
        call: What was asked: first order, vjp, hvp, ggn_vp, Taylor gradient.
        decoder_layers: How many decoder layers were looked at.
        fused_layers: How many of them ran as fused layers: all, or none.
        dtype: What these computed in, such as "bfloat16"; sums are of 32 bits at least.
        single: The LoRA layers that ran by themselves, base and adapter as one step.
        own_code: Those that ran the model's own code, each with the reason.
        why: Why decoder layers, or some of their calls, were not fused.
    """

    call: str = ""
    decoder_layers: int = 0
    fused_layers: int = 0
    dtype: str = ""
    single: tuple[str, ...] = ()
    own_code: dict[str, str] = field(default_factory=dict)
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.call:
            return "No pass has run yet."
        parts = [f"{self.fused_layers} of {self.decoder_layers} decoder layers fused"]
        if self.dtype:
            parts[0] += f" in {self.dtype}"
        if self.why:
            parts[0] += f" ({'; '.join(self.why)})"
        if self.single:
            parts.append(f"{len(self.single)} LoRA layers by themselves ({_some(self.single)})")
        for reason in dict.fromkeys(self.own_code.values()):
            names = tuple(name for name, each in self.own_code.items() if each == reason)
            parts.append(f"{len(names)} by the model's own code, since {reason} ({_some(names)})")
        return f"{self.call}: {'; '.join(parts)}."


def _some(names: tuple[str, ...]) -> str:
    more = ", …" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _code(function: Any) -> Any:
    """Return what a function runs, the same for one that is made anew for each call."""
    if isinstance(function, partial):
        return _code(function.func)
    code = getattr(function, "__code__", None)
    if code is None:
        return type(function)
    cells = getattr(function, "__closure__", None) or ()
    functions: Any = (FunctionType, MethodType, partial)
    within = [each for cell in cells if isinstance(each := cell.cell_contents, functions)]
    return code, *map(_code, within)


class Passes:
    """Runs passes, and remembers the decoder layers that it found and which way the last pass went.

    Args:
        model: The model.
        layout: Its adapter.
        check: Whether one sample of the first batch is compared with plain autograd.
    """

    def __init__(self, model: nn.Module, layout: Layout, check: bool) -> None:
        self.model, self.layout = model, layout
        self.reports: dict[str, Report] = {}
        self._unchecked = check
        self._proven_for: tuple[Any, ...] = ()
        self._proofs: dict[tuple[Any, ...], set[Adapted]] = {}
        self._stack: Stack | None = None

    @property
    def report(self) -> Report:
        """What ran in the last pass."""
        return next(reversed(self.reports.values()), Report())

    @report.setter
    def report(self, last: Report) -> None:
        if last.call:  # else no pass has run
            self.reports.pop(last.call, None)
            self.reports[last.call] = last

    def first_order(
        self, forward: Forward, loss: Loss, batch: Any, reducers: Iterable[Reducer]
    ) -> Tensor:
        """Give a batch's per-sample gradients to the reducers; return its losses [n], detached."""
        taking, row = list(reducers), _OneRow()
        if self._unchecked:
            taking.append(row)

        def once(call: FusedCall | None) -> tuple[Tensor, Report]:
            tape = Tape(self.layout)
            self._recall_proofs(forward, loss)
            with ExitStack() as running:
                self._start(running, tape, call)
                losses = loss(forward(self.model, batch), batch)
                check_losses(losses, self.layout)
                found = Collector(self.layout, taking, len(losses))
                prove = len(losses) > 1 and bool(tape.unproven or tape.counts - {len(losses)})
                tape.backward(losses, None, found, keep=prove)
                if prove:
                    weights = row_weights(losses)
                    again = Collector(self.layout, [], len(losses))
                    tape.backward(losses * weights, None, again)
                    prove_rows(found, again, weights)
            return losses.detach(), self._report("first order", tape, call)

        losses = self._either_way(once)
        if self._unchecked:
            self._compare(lambda: loss(forward(self.model, batch), batch), row)
            self._unchecked = False
        return losses

    def _recall_proofs(self, *functions: Any) -> None:
        """Have the rows of inputs proven for each forward and loss."""
        code = tuple(_code(function) for function in functions)
        if code != self._proven_for:
            layers = self.layout.layers
            self._proofs[self._proven_for] = {layer for layer in layers if layer.rows_proven}
            self._proven_for = code
            for layer in layers:
                layer.rows_proven = layer in self._proofs.get(code, ())

    def deferred(self, forward: Forward, batch: Any) -> DeferredVjp:
        """Run `forward` and keep its graph."""

        def once(call: FusedCall | None) -> tuple[DeferredVjp, Report]:
            tape = Tape(self.layout)
            with ExitStack() as running:
                self._start(running, tape, call)
                found = DeferredVjp(self.layout, tape, forward(self.model, batch))
            return found, self._report("vjp", tape, call)

        # Whether outputs at padding are used is seen in a backward pass, which comes too late here.
        return self._either_way(once, padded=False)

    def outputs(self, forward: Forward, batch: Any) -> Any:
        """Run `forward` without a graph; the report stays that of the last pass with one."""

        def once(call: FusedCall | None) -> tuple[Any, Report]:
            with ExitStack() as running, torch.no_grad():
                self._start(running, Tape(self.layout), call)
                return forward(self.model, batch), self.report

        return self._either_way(once, padded=False)

    def product(
        self, kind: str, theta: Tensor, product: Callable[[Tensor, Recorder | None], Tensor]
    ) -> Tensor:
        """Return a curvature `product` of θ and a recorder of the fused layers, or None."""

        def once(call: FusedCall | None) -> tuple[Tensor, Report]:
            point = theta.detach().requires_grad_()
            result = curvature.attempt(self.layout, point, call, product)
            return result, self._report(kind, None, call)

        return self._either_way(once, curved=True)

    def check(self, forward: Forward, loss: Loss, batch: Any) -> None:
        """Compare one sample of this batch with plain autograd, where that has yet to be done."""
        if self._unchecked:
            self.first_order(forward, loss, batch, [])

    def _either_way(
        self,
        once: Callable[[FusedCall | None], tuple[T, Report]],
        padded: bool = True,
        curved: bool = False,
    ) -> T:
        """Return what `once` gives with fused layers, or without where these cannot serve."""
        with evaluating(self.model, self.layout):
            self._stack = find(self.model, self.layout, self._stack)
            self._why = self._stack.why_not
            if self._stack.layers:
                dtype = self._stack.dtype if curved else self._stack.first_order
                call = FusedCall(self._stack, dtype, padded)
                try:
                    result, self.report = once(call)
                    if not call.broken:
                        return result
                except UnservedError:
                    if not call.broken:
                        raise
                self._why = call.broken
            result, self.report = once(None)
            return result

    def _start(self, running: ExitStack, tape: Tape, call: FusedCall | None) -> None:
        """Let the model compute on the tape."""
        if call is not None:
            running.enter_context(call.installed(tape.fused))
        running.enter_context(replaced(self.layout, tape.lora))

    def _report(self, kind: str, tape: Tape | None, call: FusedCall | None) -> Report:
        assert self._stack is not None
        layers = 0
        if self._stack.parent is not None:
            layers = len(self._stack.parent.get_submodule(self._stack.name))  # type: ignore[arg-type]
        fused = layers if call is not None and call.fused else 0
        why = [self._why] if call is None else list(dict.fromkeys(call.reasons))
        single = () if tape is None else tuple(tape.single)
        own = {} if tape is None else dict(tape.own)
        if tape is None and not fused:
            own = dict.fromkeys(self.layout.names_of_layers(), "double backward needs all of it")
        dtype = str(call.dtype).removeprefix("torch.") if call is not None and fused else ""
        return Report(kind, layers, fused, dtype, single, own, tuple(why))

    def _compare(self, losses_of: Callable[[], Tensor], row: _OneRow) -> None:
        """Raise where a sample's gradient is not plain autograd's, by the model's own code."""
        found = row.result()[0]

        def plain() -> Tensor:
            with evaluating(self.model, self.layout):
                parts = torch.autograd.grad(
                    losses_of()[row.index],
                    self.layout.parameters(),
                    allow_unused=True,
                    materialize_grads=True,
                )
            return torch.cat([part.flatten().to(found) for part in parts])

        expected = plain()
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        limit = max(CHECK.get(dtype, CHECK_HALF) for dtype in dtypes)
        least = expected.norm().clamp_min(1e-30)
        error = float((found - expected).norm() / least)
        if limit == CHECK_HALF < error:
            with rounded_again(self.model):
                limit = max(limit, NOISE * float((plain() - expected).norm() / least))
        if not error <= limit and bool(expected.any() | found.any()):
            raise EngineError(
                f"the gradient of sample {row.index} of the first batch was compared with plain "
                "autograd's",
                f"they differ by {error:.2g} of its length, where {limit:.2g} is rounding "
                f"({self.report})",
                "Do not use the engine with this model, forward() and loss(): look whether "
                "samples depend on each other, or whether the loss is random",
            )


@contextmanager
def rounded_again(model: nn.Module) -> Iterator[None]:
    """Round the outputs of the model's modules, those in half precision, at random once more."""
    generator = torch.Generator().manual_seed(0)

    def nudge(module: nn.Module, given: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.dtype not in (torch.bfloat16, torch.float16):
            return output
        part = (torch.rand(output.shape, generator=generator) - 0.5).to(output.device)
        return (output.float() * (1 + torch.finfo(output.dtype).eps * part)).to(output.dtype)

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [module.register_forward_hook(nudge) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _OneRow(Sums):
    """The gradient of one sample, the last."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(1, 0))

    def start(self, layout: Layout, n: int) -> None:
        self.index = n - 1
        self._weights = torch.zeros(1, n, dtype=layout.dtype, device=layout.device)
        self._weights[0, -1] = 1
        super().start(layout, n)
