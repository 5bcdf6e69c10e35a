"""Samples as a person reads them."""

from __future__ import annotations

import numpy as np
import polars as pl

from fudlr.data.interactions import Interactions, Samples
from fudlr.data.rows import RowSamples, named

SHOWN_HISTORY = 10


def described(samples: Samples) -> pl.DataFrame:
    """One row a sample: `sample_id`, `user_id`, `target`, `target_title`, and `history`, the latest
    titles before it; null where not known."""
    interactions = samples.interactions
    return pl.DataFrame(
        {
            "sample_id": samples.ids,
            "user_id": named(interactions.users["user_id"], samples.user),
            "target": named(interactions.items["item_id"], samples.target),
            "target_title": named(titles(interactions), samples.target),
            "history": _histories(samples),
        }
    )


def titles(interactions: Interactions) -> pl.Series:
    """The items' titles [M], or their ids where they have none."""
    column = "title" if "title" in interactions.items.columns else "item_id"
    return interactions.items[column]


def _histories(samples: Samples) -> pl.Series:
    shown_as, items = titles(samples.interactions), samples.interactions.item
    if isinstance(samples, RowSamples):  # a history is the row's own
        own = (samples.history(i)[-SHOWN_HISTORY:] for i in range(len(samples)))
        shown_titles = [shown_as.gather(each).to_list() for each in own]
        return pl.Series(shown_titles, dtype=pl.List(pl.String))
    start = np.maximum(
        samples.interactions.user_starts[samples.user], samples.position - SHOWN_HISTORY
    )
    length = samples.position - start
    ends = length.cumsum()
    shown = np.arange(length.sum()) - np.repeat(ends - length - start, length)
    rows = pl.DataFrame({"row": np.repeat(np.arange(len(samples)), length)})
    rows = rows.with_columns(title=shown_as.gather(items[shown]))
    lists = rows.group_by("row", maintain_order=True).agg("title")
    every = pl.DataFrame({"row": np.arange(len(samples))}).join(
        lists, on="row", how="left", maintain_order="left"
    )
    return every["title"].fill_null([])
