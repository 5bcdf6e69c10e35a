"""A metric of your own: a function of scores and side information, then a name in any objective."""

from __future__ import annotations

import torch
from fudlr.data import (
    history_groups,
    item_groups,
    leave_last_out,
    synthetic,
    tail_items,
    user_groups,
)
from fudlr.metrics import Objective, Side, catalogue_softmax, evaluate, from_function, register


def blockbusters(scores: torch.Tensor, side: Side) -> torch.Tensor:
    """Expected share of recommendations that go to the ten most popular items."""
    ten = side.popularity.topk(10).indices
    return catalogue_softmax(scores, side.seen)[:, ten].sum(1).mean()


def in_lists(top: torch.Tensor, side: Side) -> torch.Tensor:
    """The same on the lists that users see."""
    return torch.isin(top, side.popularity.topk(10).indices).double().mean()


register(from_function("blockbusters", blockbusters, lower_is_better=True, hard=in_lists))


def main() -> None:
    data = synthetic(n_users=90, n_items=120, seed=0)
    split = leave_last_out(data)
    groups, labels = user_groups(data, "gender")
    genres, _ = item_groups(data)
    side = Side.from_arrays(
        popularity=split.popularity,
        tail=tail_items(split.popularity),
        item_groups=genres,
        target=split.valid.target,
        seen=split.valid.seen(),
        user_group=groups[split.valid.user],
        history_groups=history_groups(split.valid, genres),
        group_labels=labels,
    )
    popular = side.popularity.log1p().expand(len(split.valid), -1).contiguous()

    objective = Objective.parse("blockbusters + 0.5*arp")
    start, gradients = objective.gradients(popular, side)
    step = torch.einsum("t,tnm->nm", objective.coefficients(start), gradients)
    fairer = popular - 500 * step
    print(f"{objective}: 1.5 -> {float(objective.value(fairer, side, start)):.3f}")
    before, after = evaluate(popular, side), evaluate(fairer, side)
    for name in ("blockbusters", "blockbusters_soft", "arp"):
        print(f"{name}: {before[name]:.3f} -> {after[name]:.3f}")


if __name__ == "__main__":
    main()
