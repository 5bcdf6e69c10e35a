"""Made-up interactions as the RecBole files that `data.source` reads."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fudlr.common.files import atomic_file
from fudlr.data import Interactions


def write_recbole(folder: Path, name: str, data: Interactions) -> None:
    """Write NAME.inter, NAME.user (every column as text) and NAME.item (titles and genres)."""
    events = pl.DataFrame(
        {
            "user_id:token": data.users["user_id"].gather(data.user),
            "item_id:token": data.items["item_id"].gather(data.item),
            "timestamp:float": data.time,
        }
    )
    users = data.users.rename({column: f"{column}:token" for column in data.users.columns})
    items = data.items.select(
        pl.col("item_id").alias("item_id:token"),
        pl.col("title").alias("movie_title:token_seq"),
        pl.col("genres").list.join("|").str.replace_all(" ", "-").alias("genre:token_seq"),
    )
    for kind, table in (("inter", events), ("user", users), ("item", items)):
        with atomic_file(folder / f"{name}.{kind}") as temporary:
            table.write_csv(temporary, separator="\t")
