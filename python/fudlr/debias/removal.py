"""Named users, items or samples taken out: a request whose mask is given, and audited.

A further request repeats the training without the samples of all requests before it too, from the
trained adapter and not from the last update: so a streak of requests ends, to the bit, where one
request for all of them does, and errors do not add up from one to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fudlr.common.errors import DataError, UsageError
from fudlr.config import DebiasConfig
from fudlr.data import groups_or_none
from fudlr.data.named import places
from fudlr.debias.steps import Result, carry_out
from fudlr.pipeline.plan import collected_warnings, with_options
from fudlr.report.data import load_report_data
from fudlr.run import Run

UNUSED = ("budget", "mask", "candidates", "lambda_spa")
"""Options that choose a mask."""


@dataclass(frozen=True)
class Named:
    """What is to be forgotten.

    Attributes:
        mask: `[n]`, true for its training samples, earlier requests' included.
        about: How many of what were named, for the summary.
    """

    mask: Tensor
    about: dict[str, int]


def forget(
    run: Run,
    config: DebiasConfig | None = None,
    *,
    users: Iterable[Any] = (),
    items: Iterable[Any] = (),
    samples: Iterable[Any] = (),
    after: Sequence[str | Path] = (),
    **options: Any,
) -> Result:
    """Take named users', items' or samples' effect out of the run's adapter.

    Args:
        run: From `fudlr.load_run` or `fudlr.train_run`; its model holds the updated adapter
            afterwards.
        config: Options; the run's own where None.
        users: Ids of users, whose training samples go.
        items: Ids of items; the training samples go that teach to recommend them.
        samples: Ids of training samples.
        after: Folders of earlier results of this run, whose samples stay forgotten.
        options: Single options that override the configuration.

    Raises:
        DataError: An id that is unknown or has no training sample; nothing, or no sample of a group
            of users, would be left to train on (forced, a group may go).
        UsageError: Nothing is named, or an option that chooses a mask.
        FudlrError: As `debias`.
    """
    if given := [name for name in UNUSED if name in options]:
        raise UsageError(
            f"named samples were to be forgotten with debias.{given[0]}",
            "it chooses samples, and these are named",
            "Leave it out",
        )
    config = with_options(config or run.config.debias, {**options, "candidates": 1.0})
    named = find(run, users=users, items=items, samples=samples, after=after)
    if not config.force:
        _check_groups(run, named.mask)
    return carry_out(run, config, given=named.mask, about=named.about)


def find(
    run: Run,
    *,
    users: Iterable[Any] = (),
    items: Iterable[Any] = (),
    samples: Iterable[Any] = (),
    after: Sequence[str | Path] = (),
) -> Named:
    """The training samples of what is named; see `forget`."""
    train = run.split.train
    tables = {
        "user": (list(users), run.interactions.users["user_id"].to_list(), train.user),
        "item": (list(items), run.interactions.items["item_id"].to_list(), train.target),
        "sample": (list(samples), train.ids.tolist(), np.arange(len(train))),
    }
    asked = "training samples were to be forgotten"
    if not any(ids for ids, _, _ in tables.values()):
        raise UsageError(asked, "none is named", "Name users, items or samples by their ids")
    mask = np.zeros(len(train), dtype=bool)
    about = {}
    for kind, (ids, known, column) in tables.items():
        if not ids:
            continue
        where = "the training samples" if kind == "sample" else "the data"
        found = np.unique(places(ids, known, kind, where))
        if bare := [known[at] for at in found[~np.isin(found, column)]]:
            raise DataError(
                asked,
                f"{len(bare)} of {len(found)} {kind}s have none ({kind} {bare[0]!r} the first)",
                f"Leave them out: the adapter was not trained on them as {kind}s",
            )
        mask |= np.isin(column, found)
        about[f"{kind}s"] = len(found)
    about["removed"] = int(mask.sum())
    for folder in after:
        earlier = load_report_data(Path(folder))
        mask |= earlier.weights(train.ids.tolist()).to_numpy() < 1
    about["requests"] = 1 + len(after)
    about["removed_in_all"] = int(mask.sum())
    if mask.all():
        raise DataError(
            asked, f"they are all {len(mask)} that there are", "Use the base model without adapter"
        )
    return Named(torch.from_numpy(mask), about)


def _check_groups(run: Run, mask: Tensor) -> None:
    """Refuse to leave a group of users without any training sample."""
    data, train = run.config.data, run.split.train
    with collected_warnings():
        groups, labels, _ = groups_or_none(run.interactions, data.user_group, data.item_group)
    known = train.user >= 0
    group = np.where(known, groups[train.user], -1)
    kept = set(group[~mask.numpy()])
    gone = [label for at, label in enumerate(labels) if at in set(group) - kept]
    if gone:
        raise DataError(
            f"{int(mask.sum())} training samples were to be forgotten",
            f"the group {gone[0]!r} (data.user_group: {data.user_group}) would have none left",
            "Name fewer users, or go on all the same with --force",
        )
