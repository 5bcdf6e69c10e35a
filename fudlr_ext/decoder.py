"""Runs the decoder layers of the Llama family on the ops made for them, where that is the same.

A model's stack of layers is known by the names of its parts, and used only where a probe gives the
same numbers as the model's own code. Then, in every call of the decoder, `FusedCall` makes sure of
what the probe cannot know: that nothing was hooked, patched or changed since, that the call asks
for nothing else than hidden states, and that its mask is causal with nothing but padding left out.
Within such a call the model's loop meets stand-ins in place of its layers. They hand a token from
one to the next, and the last one computes all layers: by the fused ops, or one after the other by
their own code where the mask or another argument asks for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext import _C
from fudlr_ext.decoder_layer import DecoderLayer, Norm, Part
from fudlr_ext.layers import Layout, LoraLayer
from fudlr_ext.packed import Packed, PackedBatch, pack
from fudlr_ext.probe import Probed, compute_dtype, probe
from fudlr_ext.unchanged import Unchanged, plain_weight


class UnservedError(Exception):
    """A pass over fused layers cannot give what the model would: to be done again without them."""


@dataclass
class Stack:
    """A model's decoder layers, and why they cannot be fused, if so.

    Attributes:
        parent: The module that loops over them.
        name: Their name in it.
        layers: What each is made of; empty where they are not fused.
        dtype: What the fused layers compute in.
        probed: What the probe found of their own code.
        why_not: Why they are not fused; empty where they are.
        snapshot: All of their modules, as they were.
    """

    parent: nn.Module | None = None
    name: str = ""
    layers: list[DecoderLayer] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    probed: Probed | None = None
    why_not: str = "the model has no stack of decoder layers with self_attn and mlp"
    snapshot: Unchanged | None = None

    def weights(self) -> Iterator[Tensor | None]:
        """Yield all weights that the fused layers read."""
        for layer in self.layers:
            for part in layer.parts.values():
                yield part.base.weight
            for norm in layer.norms:
                yield norm.module.weight  # type: ignore[misc]


def find(model: nn.Module, layout: Layout, known: Stack | None = None) -> Stack:
    """Return the model's stack, probed; the one that is `known` where nothing has changed since.

    To be called in evaluation mode, with the model's own forwards in place.
    """
    if known is not None and known.snapshot is not None and not known.snapshot.broken():
        if not known.layers or _same_weights(known, layout):
            return known
    stack = Stack()
    for parent in model.modules():
        for name, modules in parent.named_children():
            if not isinstance(modules, nn.ModuleList) or not len(modules):
                continue
            if all(hasattr(m, "self_attn") and hasattr(m, "mlp") for m in modules):
                stack = _examine(parent, name, layout)
                if stack.layers:
                    return stack
    return stack


def _examine(parent: nn.Module, name: str, layout: Layout) -> Stack:
    """Look at one stack: its parts, and whether fused layers give the same as its own code."""
    modules: Any = parent.get_submodule(name)
    named = [(f"{name}.{path}" if path else name, m) for path, m in modules.named_modules()]
    stack = Stack(parent, name, snapshot=Unchanged(named))
    assert stack.snapshot is not None
    stack.why_not = stack.snapshot.broken() or _cannot_run(layout)
    if not stack.why_not and len({id(m) for m in modules}) < len(modules):
        stack.why_not = "a decoder layer is used more than once"
    if stack.why_not:
        return stack
    loras = {id(layer.module): layer for layer in layout.layers}
    layers = []
    for i, module in enumerate(modules):
        layer = _describe(module, loras)
        if isinstance(layer, str):
            stack.why_not = f"{name}.{i} is not built as Llama's layers are: {layer}"
            return stack
        layers.append(layer)
    dtype = compute_dtype(layers, layout)
    if isinstance(dtype, str):
        stack.why_not = dtype
        return stack
    probed = [probe(layer, dtype, layout.device) for layer in layers]
    wrong = [i for i, found in enumerate(probed) if found is None or found != probed[0]]
    if wrong:
        stack.why_not = f"a probe of {name}.{wrong[0]} gave other numbers than its own code"
        return stack
    stack.layers, stack.dtype, stack.probed = layers, dtype, probed[0]
    return stack


def _cannot_run(layout: Layout) -> str:
    device = layout.device.type
    if device == "cpu" or (device == "cuda" and "cuda" in _C.devices()):
        return ""
    return f"the library has no kernels for {device}"


def _same_weights(stack: Stack, layout: Layout) -> bool:
    """Whether the weights are plain and lie where the probe found them, in the same dtype."""
    return all(
        plain_weight(weight) and weight.device == layout.device  # type: ignore[union-attr]
        for weight in stack.weights()
    ) and (compute_dtype(stack.layers, layout) == stack.dtype)


def _describe(module: Any, loras: dict[int, LoraLayer]) -> DecoderLayer | str:
    """Return what a layer is made of, or what is missing."""
    attention, mlp = module.self_attn, module.mlp
    parts, norms = {}, []
    try:
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            linear = getattr(mlp if len(name) > 1 else attention, f"{name}_proj")
            lora = loras.get(id(linear))
            parts[name] = Part(linear if lora is None else lora.base, lora)
            if type(parts[name].base) is not nn.Linear:
                return f"{name}_proj is {type(parts[name].base).__name__}"
            if not plain_weight(parts[name].base.weight):
                return f"the weight of {name}_proj is no plain tensor"
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(module, name)
            eps = getattr(norm, "variance_epsilon", None)
            norms.append(Norm(norm, float(norm.eps if eps is None else eps)))
            if norm.weight.dim() != 1:
                return f"{name} is no vector"
        width, scale = int(attention.head_dim), float(attention.scaling)
    except (AttributeError, TypeError) as error:
        return str(error)
    heads, key_heads = (parts[name].base.out_features // width for name in "qk")
    if not key_heads or heads % key_heads or parts["q"].base.out_features % width or width % 2:
        return f"its heads of {width} do not divide its projections"
    return DecoderLayer(module, parts, (norms[0], norms[1]), heads, key_heads, scale, width)


Run = Callable[[DecoderLayer, Packed, Tensor], Tensor]
"""Computes a decoder layer from x [T, d], packed; the graph is its own affair."""

UNDERSTOOD = {"attention_mask", "position_embeddings", "position_ids", "cache_position"}
"""Arguments of a layer that the fused ones follow, or that mean nothing to them."""


class FusedCall:
    """Stands before a decoder's calls within one pass, and lets the fused layers have those it may.

    Args:
        stack: The layers.
        run: Computes one of them.
        guard: What is done about positions that the fused layers leave out, as padding: called with
            the gradient at them, or None where padding is to be left to the model's own code.

    Attributes:
        positions: The only positions whose hidden states will be looked at, [n, L]; None: all.
        served: Whether the last call gave these positions alone, as [n, L, d].
        fused: How many calls the fused layers served.
        reasons: Why calls were left to the model's own code.
        broken: Why the pass has to be done again.
    """

    def __init__(
        self, stack: Stack, run: Run, guard: Callable[[Tensor], None] | None = None
    ) -> None:
        self.stack, self.run, self.guard = stack, run, guard
        self.positions: Tensor | None = None
        self.served = False
        self.fused = 0
        self.reasons: list[str] = []
        self.broken = ""
        self._layers: Any = None
        self._cache_dropped = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand there for a while."""
        parent = self.stack.parent
        assert parent is not None
        handles = [
            parent.register_forward_pre_hook(self.enter, with_kwargs=True),
            parent.register_forward_hook(self.leave, always_call=True),
        ]
        try:
            yield
        finally:
            self.leave()
            for handle in handles:
                handle.remove()

    def enter(self, parent: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put the stand-ins in place of the layers, where the call may be served."""
        self.served, self._cache_dropped = False, False
        if self._layers is not None:  # called from within itself
            raise self.unserved("the decoder calls itself")
        problem = self._problem(parent, kwargs)
        if problem:
            self.reasons.append(problem)
            return None
        self._layers = parent._modules[self.stack.name]
        stages = _Stages(self._layers, self)
        parent._modules[self.stack.name] = stages
        if kwargs.get("use_cache") is None:
            # A cache that nobody asked for would be filled by the layers' own code alone.
            self._cache_dropped = True
            return args, {**kwargs, "use_cache": False}
        return None

    def leave(self, *_: Any) -> None:
        """Put the layers back."""
        if self._layers is not None:
            self.stack.parent._modules[self.stack.name] = self._layers  # type: ignore[union-attr]
            self._layers = None

    def _problem(self, parent: nn.Module, kwargs: dict[str, Any]) -> str:
        config = getattr(parent, "config", None)
        asked = [
            name
            for name, value in [*vars(config).items(), *kwargs.items()]
            if name.startswith("output_") and value is not None and value is not False
        ] if config is not None else []  # fmt: skip
        if asked:
            return f"{asked[0]} was asked for"
        if kwargs.get("use_cache"):
            return "use_cache=True was asked for"
        if torch.is_autocast_enabled(next(self.stack.weights()).device.type):  # type: ignore[union-attr]
            return "autocast is on"
        assert self.stack.snapshot is not None
        return self.stack.snapshot.broken()

    def unserved(self, reason: str) -> UnservedError:
        """Return the error that has the pass done again without fused layers."""
        self.broken = reason
        return UnservedError(reason)

    def whole(self, x: Tensor, given: list[tuple[Any, Any]]) -> Any:
        """Compute all layers from x [n, t, d] and what each was called with."""
        found = self._locate(x, given)
        if isinstance(found, str):
            if self._cache_dropped:  # own code would have had one: all again
                raise self.unserved(found)
            self.reasons.append(found)
            out: Any = x
            for layer, (args, kwargs) in zip(self._layers, given, strict=True):
                out = layer(out[0] if isinstance(out, tuple) else out, *args, **kwargs)
            return out
        out = self._fuse(x, found)
        assert self.stack.probed is not None
        return (out,) if self.stack.probed.in_tuple else out

    def _fuse(self, x: Tensor, batch: PackedBatch) -> Tensor:
        n, t, d = x.shape
        dtype = x.dtype
        x = x.reshape(n * t, d)
        if batch.rows is not None:
            x = x[batch.rows]
        x = x.to(self.stack.dtype)
        everything = batch.packed.everything()
        for layer in self.stack.layers:
            last = layer is self.stack.layers[-1]
            x = self.run(layer, batch.packed if last else everything, x)
        self.fused += 1
        x = x.to(dtype)
        if batch.slots is not None:
            self.served = True
            return x[batch.slots]
        if batch.rows is not None:
            full = x.new_zeros(n * t, d).index_copy(0, batch.rows, x)
            if full.requires_grad:
                rows = batch.rows
                full.register_hook(lambda grad: self._guarded(grad, rows))
            x = full
        return x.reshape(n, t, d)

    def _guarded(self, grad: Tensor, rows: Tensor) -> None:
        left_out = torch.ones(len(grad), dtype=torch.bool, device=grad.device)
        left_out[rows] = False
        if bool(grad[left_out].any()):
            raise self.unserved("the loss depends on what the model computes for padding")

    def _locate(self, x: Tensor, given: list[tuple[Any, Any]]) -> PackedBatch | str:
        """Return where the positions lie, or what the fused layers cannot do."""
        first = given[0][1]
        if any(args for args, _ in given):
            return "a layer is called with more than its input by position"
        for _, kwargs in given:
            for name, value in kwargs.items():
                if name not in UNDERSTOOD and value is not None and value is not False:
                    return f"a layer is called with {name}"
                if name == "is_causal" and value is not None:
                    return "a layer is called with is_causal"
            if not all(_same(kwargs.get(k), first.get(k)) for k in UNDERSTOOD):
                return "layers are called with masks or angles of their own"
        embeddings, mask = first.get("position_embeddings"), first.get("attention_mask")
        if not (isinstance(embeddings, tuple) and len(embeddings) == 2):
            return "a layer is called without position_embeddings"
        n, t = x.shape[:2] if x.dim() == 3 else (0, 0)
        width = self.stack.layers[0].width
        if not n or not t:
            return "the layers' input is not [n, t, d]"
        if any(each.shape[1:] != (t, width) or len(each) not in {1, n} for each in embeddings):
            return "the rotation is not of whole heads"
        if any(each is not None and each.device != x.device for each in (*embeddings, mask)):
            return "mask and hidden states lie on different devices"
        found = self._causal(mask, x)
        if isinstance(found, str):
            return found
        positions = self.positions
        if positions is not None and positions.shape[0] != n:
            positions = None
        cos, sin = (each.to(self.stack.dtype) for each in embeddings)
        batch = pack(*found, positions, (cos, sin))
        if batch is None:
            return "the attention mask is not causal, or a position asked for is padding"
        if batch.rows is not None and batch.slots is None and self.guard is None:
            return "padded positions are among the outputs"
        return batch

    def _causal(self, mask: Any, x: Tensor) -> tuple[Tensor, Tensor] | str:
        """Return which positions are real, [n, t], and whether these see what they should, []."""
        n, t = x.shape[:2]
        if mask is None:
            assert self.stack.probed is not None
            if not self.stack.probed.causal_without_mask:
                return "without a mask this attention is not causal"
            real = torch.ones(n, t, dtype=torch.bool, device=x.device)
            return real, real.all()
        if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1:] != (1, t, t):
            return "the attention mask is not of the form [n, 1, t, t]"
        if len(mask) not in {1, n}:
            return "the attention mask is of another batch"
        seen = (mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > -1).expand(n, t, t)
        real = seen.diagonal(dim1=1, dim2=2)
        if self.positions is None:
            pass
        expected = torch.ones(t, t, dtype=torch.bool, device=x.device).tril() & real[:, None, :]
        wrong = ((seen != expected) & real[:, :, None]).any()
        if mask.dtype != torch.bool:
            wrong = wrong | (seen & (mask[:, 0] != 0)).any()
        return real, wrong.logical_not()


def running(model: nn.Module) -> FusedCall | None:
    """Return what stands before the decoder's calls, where an engine's pass over it is going on."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, FusedCall):
                return owner
    return None


class _Stages(nn.ModuleList):
    """The layers' stand-ins, with the layers themselves as its modules."""

    def __init__(self, layers: Any, call: FusedCall) -> None:
        super().__init__(layers)
        line = _Line(call, len(layers))
        self.__dict__["_stages"] = [_Stage(line, i, layer) for i, layer in enumerate(layers)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stages)

    def __getitem__(self, index: Any) -> Any:
        return self._stages[index]


class _Line:
    """What goes from stage to stage: the input, a token, and what each was called with."""

    def __init__(self, call: FusedCall, count: int) -> None:
        self.call, self.count = call, count
        self.x: Any = None
        self.token: Any = None
        self.given: list[tuple[Any, Any]] = []

    def take(self, index: int, x: Any, args: Any, kwargs: Any) -> Any:
        if index == 0:
            self.x, self.given = x, []
        elif index != len(self.given) or x is not self.token:
            raise self.call.unserved("the model changes hidden states between its layers")
        self.given.append((args, kwargs))
        if index < self.count - 1:
            token = _Token(self.x, self.call)
            assert self.call.stack.probed is not None
            # A loop that takes the first of a tuple must find it in one.
            self.token = token
            return (token,) if self.call.stack.probed.in_tuple else token
        whole, self.x, self.token = self.call.whole(self.x, self.given), None, None
        return whole


class _Stage:
    """One layer's stand-in: called in its place, and the layer itself in all other things."""

    def __init__(self, line: _Line, index: int, layer: nn.Module) -> None:
        self._line, self._index, self._layer = line, index, layer

    def __call__(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if x is None:
            x = kwargs.pop("hidden_states", None)
        return self._line.take(self._index, x, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


KNOWN = {"shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda", "size", "dim"}


class _Token(Tensor):
    """Stands for hidden states between two layers that are computed later; no op may have it."""

    @staticmethod
    def __new__(cls, x: Tensor, call: FusedCall) -> _Token:
        token: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, x.shape, dtype=x.dtype, device=x.device
        )
        token._call = call
        return token  # type: ignore[no-any-return]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(getattr(func, "__self__", func), "__name__", "")
        if name in KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise _used(args)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _used(args)


def _used(args: Any) -> UnservedError:
    reason = "the model uses hidden states between its layers"
    for each in args:
        if type(each) is _Token:
            return each.__dict__["_call"].unserved(reason)
    return UnservedError(reason)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    return False
