"""A prefix tree of token sequences, and a language model over it with the prompt computed once.

The nodes stand in preorder, so that every stretch of them needs, of what came before, only the
path to its first node. A stretch goes through the model as one sequence: a node attends to the
prompt's keys, to its ancestors and to itself, at the position prompt + depth. A pass over the tree
thus takes prompt + nodes tokens, where each sequence alone would take prompt + its length.

Tree attention: Miao et al. 2023, "SpecInfer", arXiv 2305.09781.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from fudlr.common.errors import ModelError
from fudlr.recommenders.cached import fork, layers_of, step

Ints = NDArray[np.int64]
ROOT = -1  # the prompt's last token


class TokenTree:
    """Sequences that share their beginnings.

    Attributes:
        token: [N], of each node, in preorder.
        parent: [N], a node, or `ROOT`.
        depth: [N], 0 below the root.
        ends: [S], the node where each sequence ends; `ROOT` for an empty one.

    Args:
        sequences: S lists of tokens; any may begin, or be, another.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        order = sorted(range(len(sequences)), key=lambda s: tuple(sequences[s]))
        token: list[int] = []
        parent: list[int] = []
        depth: list[int] = []
        ends = np.full(len(sequences), ROOT, dtype=np.int64)
        path: list[int] = []  # nodes of the sequence before
        for s in order:
            sequence = sequences[s]
            pairs = zip(path, sequence, strict=False)
            same = [token[node] == wanted for node, wanted in pairs]
            shared = [*same, False].index(False)
            del path[shared:]
            for place in range(shared, len(sequence)):
                parent.append(path[-1] if path else ROOT)
                path.append(len(token))
                token.append(int(sequence[place]))
                depth.append(place)
            if path:
                ends[s] = path[-1]
        self.token: Ints = np.array(token, dtype=np.int64)
        self.parent: Ints = np.array(parent, dtype=np.int64)
        self.depth: Ints = np.array(depth, dtype=np.int64)
        self.ends = ends

    def __len__(self) -> int:
        return int(self.token.size)

    def path(self, node: int) -> list[int]:
        """Nodes from below the root to `node`, itself included."""
        found = []
        while node != ROOT:
            found.append(node)
            node = int(self.parent[node])
        return found[::-1]

    def stretches(self, size: int) -> Iterator[Stretch]:
        """The nodes in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            path = self.path(int(self.parent[start]))
            inside = np.zeros((stop - start, len(path) + stop - start), dtype=bool)
            for node in range(start, stop):
                parent = int(self.parent[node])
                row = inside[node - start]
                if parent >= start:
                    row |= inside[parent - start]
                elif parent != ROOT:
                    row[: path.index(parent) + 1] = True
                row[len(path) + node - start] = True
            yield Stretch(start, stop, tuple(path), torch.from_numpy(inside))


@dataclass(frozen=True)
class Stretch:
    """Nodes `start` to `stop`, the path above the first, and who sees whom [stop - start, path +
    stop - start].
    """

    start: int
    stop: int
    path: tuple[int, ...]
    sees: Tensor


@dataclass(frozen=True)
class Seen:
    """What a pass over some nodes gave.

    Attributes:
        start, stop: The nodes; `ROOT` to 0 for the prompt.
        values: [n, stop - start, ...], what the step returns at each.
    """

    start: int
    stop: int
    values: Tensor


def walk(
    model: nn.Module, prompt: dict[str, Tensor], tree: TokenTree, size: int, states: bool = False
) -> Iterator[Seen]:
    """Run the model over prompts and, below each of them, over the whole tree.

    Args:
        model: A causal language model whose attention takes masks [n, 1, t, keys].
        prompt: `input_ids`, `attention_mask`, `position_ids` [n, t], padded on the left.
        tree: The same below every prompt.
        size: Most nodes at a time.
        states: Whether last hidden states are wanted, in place of logits.

    Yields:
        The values after the prompt, then those of the nodes in their order.
    """
    now = step(model, DynamicCache(), prompt, last=True, states=states)
    yield Seen(ROOT, 0, (now.states if states else now.logits)[:, -1:])
    kept = last = layers_of(now.cache)  # keys and values of the prompt, and of the last stretch
    place: dict[int, int] = {}  # columns of the nodes in the last
    mask = prompt["attention_mask"].bool()
    first = prompt["position_ids"][:, -1:] + 1
    token, depth = torch.from_numpy(tree.token), torch.from_numpy(tree.depth)
    for stretch in tree.stretches(size):
        part = slice(stretch.start, stretch.stop)
        n, t = len(mask), stretch.stop - stretch.start
        sees = [mask[:, None].expand(n, t, -1), stretch.sees.to(mask.device).expand(n, t, -1)]
        now = step(
            model,
            fork(kept, last, [place[node] for node in stretch.path]),
            {
                "input_ids": token[part].to(mask.device).expand(n, t),
                "attention_mask": additive(torch.cat(sees, 2), weight_dtype(model)),
                "position_ids": first + depth[part].to(mask.device),
            },
            last=states,
            states=states,
        )
        last = layers_of(now.cache)
        nodes = (*stretch.path, *range(stretch.start, stretch.stop))
        place = {node: mask.shape[1] + column for column, node in enumerate(nodes)}
        yield Seen(stretch.start, stretch.stop, now.states if states else now.logits)


def at_nodes(
    seen: Iterable[Seen], nodes: Tensor, pick: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """What `pick` takes at `nodes` [P] from the passes that hold them: [n, P, ...].

    Args:
        seen: Passes over a tree.
        nodes: In any order, each as often as it is wanted.
        pick: (values [n, t, ...], p columns of these, p places among `nodes`) to [n, p, ...].
    """
    found, places = [], []
    for part in seen:
        here = ((nodes >= part.start) & (nodes < part.stop)).nonzero().flatten()
        if len(here):
            columns = (nodes[here] - part.start).to(part.values.device)
            found.append(pick(part.values, columns, here))
            places.append(here)
    order = torch.cat(places).argsort()
    return torch.cat(found, 1)[:, order.to(found[0].device)]


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask [n, 1, t, keys] to add to attention's logits from who sees whom [n, t, keys]."""
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def check_attention(model: nn.Module) -> None:
    """Refuse attention that cannot take a mask of its own.

    Raises:
        ModelError: Flash or flex attention.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    if kind not in (None, "sdpa", "eager"):
        raise ModelError(
            "a tree of titles was to be scored",
            f"the model's attention is {kind}, which takes no mask of its own",
            'Load it with attn_implementation="sdpa"',
        )


def weight_dtype(model: nn.Module) -> torch.dtype:
    """Of the embeddings, and so of what attention gets."""
    return model.get_input_embeddings().weight.dtype  # type: ignore[operator]


def unpadded(prompt: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """Prompt `i` alone, without its padding."""
    real = prompt["attention_mask"][i].bool()
    return {name: value[i : i + 1, real] for name, value in prompt.items()}
