"""Options of a run that trains in a second; interactions written as people have them."""

import json

import polars as pl
from fudlr.data import synthetic

SMALL = {
    "data.source": "synthetic", "data.k": 5, "model.hidden": 16, "model.heads": 2,
    "model.kv_heads": 1, "model.pretrain_epochs": 0, "train.epochs": 1, "lora.rank": 2,
    "record.epochs": "none",
}  # fmt: skip


def tables(n_users=60, n_items=24):
    data = synthetic(n_users, n_items, seed=2, per_user=(8, 12))
    events = pl.DataFrame(
        {
            "user_id": data.users["user_id"].gather(data.user),
            "item_id": data.items["item_id"].gather(data.item),
            "timestamp": data.time,
        }
    )
    items = data.items.with_columns(genres=pl.col("genres").list.join("|"))
    return events, data.users, items


def csv(folder):
    for table, stem in zip(tables(), ("interactions", "users", "items"), strict=True):
        table.write_csv(folder / f"{stem}.csv")
    return folder


def parquet(folder):
    for table, stem in zip(tables(), ("interactions", "users", "items"), strict=True):
        table.write_parquet(folder / f"{stem}.parquet")
    return folder


def dat(folder):
    events, users, items = tables()
    lines = [f"{u[1:]}::{i[1:]}::5::{t}\n" for u, i, t in events.iter_rows()]
    (folder / "ratings.dat").write_text("".join(lines))
    lines = [f"{u[1:]}::{'FM'[g == 'A']}::{a}::1::0\n" for u, g, a in users.iter_rows()]
    (folder / "users.dat").write_text("".join(lines))
    lines = [f"{i[1:]}::{t} (1999)::{g}\n" for i, t, g in items.iter_rows()]
    (folder / "movies.dat").write_text("".join(lines))
    return folder


def bigrec(folder):
    """A row a user, as instruction data have it: the history in words, the last title as answer."""
    events, _, items = tables()
    titles, rows = dict(items.select("item_id", "title").iter_rows()), []
    for _, own in events.group_by("user_id", maintain_order=True):
        *seen, last = (f'"{titles[item]}"' for item in own.sort("timestamp")["item_id"])
        told = f"The user has watched the following movies before: {', '.join(seen)}"
        rows.append({"instruction": "Recommend a movie.", "input": told, "output": last})
    (folder / "train.json").write_text(json.dumps(rows))
    return folder
