"""Synthetic interactions written as people have them: one function a form."""

import json

import polars as pl
from fudlr.data import synthetic


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


def recbole(folder):
    events, users, items = tables()
    items = items.with_columns(genres=pl.col("genres").str.replace_all("genre ", "g"))
    items = items.with_columns(genres=pl.col("genres").str.replace_all("|", " ", literal=True))
    kinds = {"timestamp": "float", "title": "token_seq", "genres": "token_seq"}
    for table, suffix in ((events, "inter"), (users, "user"), (items, "item")):
        named = table.rename({n: f"{n}:{kinds.get(n, 'token')}" for n in table.columns})
        named.write_csv(folder / f"small.{suffix}", separator="\t")
    return folder


def csv(folder):
    for table, stem in zip(tables(), ("interactions", "users", "items"), strict=True):
        table.write_csv(folder / f"{stem}.csv")
    return folder


def parquet(folder):
    for table, stem in zip(tables(), ("interactions", "users", "items"), strict=True):
        table.write_parquet(folder / f"{stem}.parquet")
    return folder


def jsonl(folder):
    for table, stem in zip(tables(), ("interactions", "users", "items"), strict=True):
        table.write_ndjson(folder / f"{stem}.jsonl")
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


def _histories():
    events, _, items = tables()
    titles = dict(items.select("item_id", "title").iter_rows())
    for _, rows in events.group_by("user_id", maintain_order=True):
        yield [titles[item] for item in rows.sort("timestamp")["item_id"]]


def bigrec(folder):
    rows = [
        {
            "instruction": "Recommend a movie.",
            "input": "The user has watched the following movies before: "
            + ", ".join(f'"{title}"' for title in titles[:-1]),
            "output": f'"{titles[-1]}"',
        }
        for titles in _histories()
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


def tallrec(folder):
    rows = [
        {
            "instruction": "Will the user like it?",
            "input": "User Preference: "
            + ", ".join(f'"{title}"' for title in titles[:-1])
            + "\nUser Unpreference: \nWhether the user will like the target movie "
            + f'"{titles[-1]}"?',
            "output": "Yes.",
        }
        for titles in _histories()
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def saved_dataset(folder):
    import datasets

    names = ("interactions", "users", "items")
    parts = dict(zip(names, tables(), strict=True))
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(t.to_dict(as_series=False)) for name, t in parts.items()}
    ).save_to_disk(folder / "saved")
    return folder / "saved"
