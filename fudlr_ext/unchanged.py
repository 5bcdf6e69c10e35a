"""Whether modules still are what a fast path was proven for; cheap enough to ask in every pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

INERT = "transformers.utils.output_capturing"
"""Hooks of this module record nothing unless a call asks for it, which `Decoder` looks at."""
PLAIN = {nn.Parameter, Tensor}
"""Classes of tensors that are nothing but their numbers."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Patch:
    """A `forward` that the engine writes into a module for the time of a pass.

    Args:
        call: What is called, with the patch itself before the caller's arguments.
        module: The module.
    """

    def __init__(self, call: Any, module: nn.Module) -> None:
        self.call, self.module = call, module
        self.before = module.__dict__.get("forward")

    @property
    def own(self) -> Any:
        """The module's own forward."""
        return self.before or self.module.__class__.forward.__get__(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run in the module's place."""
        return self.call(self, *args, **kwargs)

    def set(self) -> None:
        """Write it."""
        self.module.__dict__["forward"] = self

    def remove(self) -> None:
        """Put back what was there."""
        if self.before is None:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.__dict__["forward"] = self.before


def any_global_hook() -> bool:
    """Whether somebody hooks into all modules' calls."""
    return bool(torch.nn.modules.module._has_any_global_hook())


def altered(module: nn.Module) -> str:
    """Say what keeps a module's class from saying all that a call of it does, or nothing.

    Hooks, a `forward` of its own, compilation.
    """
    for kind in HOOKS:
        hooks = getattr(module, kind)
        if hooks and any(getattr(h, "__module__", None) != INERT for h in hooks.values()):
            return "has hooks"
    forward = module.__dict__.get("forward")
    if type(forward) is Patch:
        forward = forward.before  # somebody's, which the engine's own would hide
    if forward is not None:
        return "has a forward of its own"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "is compiled"
    return ""


def plain_weight(weight: Tensor | None) -> bool:
    """Whether a weight is an ordinary tensor of floating point numbers that are there."""
    return (
        type(weight) in PLAIN
        and not weight.is_meta  # type: ignore[union-attr]
        and weight.is_floating_point()  # type: ignore[union-attr]
        and weight.layout is torch.strided  # type: ignore[union-attr]
    )


def sharded(weight: object) -> bool:
    """Whether a weight is a part of one that several processes hold (FSDP2, tensor parallelism)."""
    return type(weight).__name__ == "DTensor"  # known without what it would take to import it


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return what `model.modules()` yields, in some order, without the cost of making names."""
    found, left = {id(model): model}, [model]
    while left:
        for child in left.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                left.append(child)
    return list(found.values())


class Unchanged:
    """A snapshot of modules: their classes, parts, attributes, what their code calls, their config.

    Not of their parameters' values, which a pass reads anew. To be taken and compared in evaluation
    mode.

    Args:
        named: The modules with their names for messages.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Module]]) -> None:
        self._states = [
            (name, module, module.__class__, _attributes(module), _children(module))
            for name, module in named
        ]
        configs = {id(c): c for _, m, *_ in self._states if (c := _config(m)) is not None}
        self._configs = [(config, dict(vars(config))) for config in configs.values()]
        kinds = {module.__class__: None for _, module, *_ in self._states}
        self._kinds = [(kind, kind.forward, kind.__call__) for kind in kinds]
        self._globals = [each for kind in kinds for each in _called(kind)]

    def broken(self) -> str:
        """Say what is altered, or has changed since; nothing where all is as it was."""
        if any_global_hook():
            return "a hook on all modules is set"
        for name, module, kind, values, children in self._states:
            own = module.__dict__
            hooked = any(map(own.__getitem__, HOOKS)) or "forward" in own
            if hooked and (problem := altered(module)):
                return f"{name} {problem}"
            now = _attributes(module)
            same = len(now) == len(values) and all(map(is_, values, now))
            if not same or module.__class__ is not kind or _children(module) != children:
                return f"{name} was changed"
        return self._broken_elsewhere()

    def _broken_elsewhere(self) -> str:
        """Say what has changed of the modules' classes, configurations and what they call."""
        for kind, forward, call in self._kinds:
            if kind.forward is not forward or kind.__call__ is not call:
                return f"{kind.__name__} was changed"
        for config, before in self._configs:
            if vars(config) != before:
                return f"{type(config).__name__} was changed"
        for names, name, value in self._globals:
            if names.get(name) is not value:
                return f"{name}(), which a layer calls, was replaced"
        return ""


def _attributes(module: nn.Module) -> list[Any]:
    """Return a module's attributes but for the engine's patch, which is the last where it is."""
    found = list(module.__dict__.values())
    if type(found[-1]) is Patch:
        found.pop()
    return found


def _children(module: nn.Module) -> list[int]:
    return [id(child) for child in module._modules.values()]


def _config(module: nn.Module) -> Any:
    config = module.__dict__.get("config")
    return config if hasattr(config, "__dict__") else None


def _called(kind: type[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yield the module-level names that a class's forward uses, with what they mean now."""
    forward: Any = inspect.unwrap(kind.forward)
    code = getattr(forward, "__code__", None)
    for name in getattr(code, "co_names", ()):
        if name in forward.__globals__:
            yield forward.__globals__, name, forward.__globals__[name]
