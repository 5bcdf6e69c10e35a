"""One small data set written in every form; all of them should read as the same interactions."""

import json

import polars as pl

# user, item, time
EVENTS = [(u, 1 + (u * 3 + 2 * n) % 11, 1000 * u + 7 * n) for u in range(1, 7) for n in range(8)]
USERS = [(u, 20 + u, "MF"[u % 2], "artist" if u < 4 else "writer", f"0{u}") for u in range(1, 7)]
ITEMS = [
    (i, title, year, genres)
    for i, (title, year, genres) in enumerate(
        [
            ("Toy Story", 1995, ["Animation", "Comedy"]),
            ("Heat", 1995, ["Action"]),
            ("Délicatessen", 1991, ["Comedy"]),
            ("Twins", 1990, ["Drama"]),
            ("Twins", 1990, ["War"]),
            ("Rock, The", 1996, ["Action"]),
            ("Fargo", 1996, ["Crime", "Drama"]),
            ("Othello", 1995, ["Drama"]),
            ("Babe", 1995, ["Comedy", "Drama"]),
            ("Seven", 1995, ["Crime"]),
            ("Amelie", 2001, ["Comedy"]),
        ],
        start=1,
    )
]
USER_NAMES = ("user_id", "age", "gender", "occupation", "zip_code")


def write_recbole(folder):
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += ["\t".join(map(str, row)) for row in EVENTS]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n")
    lines = ["\t".join(f"{name}:token" for name in USER_NAMES)]
    lines += ["\t".join(map(str, row)) for row in USERS]
    (folder / "toy.user").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\ttitle:token_seq\tyear:token\tgenres:token_seq"]
    lines += [f"{i}\t{title}\t{year}\t{' '.join(genres)}" for i, title, year, genres in ITEMS]
    (folder / "toy.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_dat(folder):
    lines = [f"{u}::{i}::4::{t}\n" for u, i, t in EVENTS]
    (folder / "ratings.dat").write_text("".join(lines))
    lines = [f"{u}::{g}::{a}::{o}::{z}\n" for u, a, g, o, z in USERS]
    (folder / "users.dat").write_text("".join(lines))
    lines = [f"{i}::{t} ({y})::{'|'.join(g)}\n" for i, t, y, g in ITEMS]
    (folder / "movies.dat").write_bytes("".join(lines).encode("latin-1"))
    return folder


def write_u_data(folder):
    from fudlr.data.movielens import GENRES

    lines = [f"{u}\t{i}\t4\t{t}\n" for u, i, t in EVENTS]
    (folder / "u.data").write_text("".join(lines))
    lines = ["|".join(map(str, row)) + "\n" for row in USERS]
    (folder / "u.user").write_text("".join(lines))
    lines = [
        f"{i}|{t} ({y})|01-Jan-{y}||http://x/|" + "|".join(str(int(n in g)) for n in GENRES) + "\n"
        for i, t, y, g in ITEMS
    ]
    (folder / "u.item").write_bytes("".join(lines).encode("latin-1"))
    return folder


def frames():
    """The three tables, typed as a program would have them."""
    events = pl.DataFrame(EVENTS, schema=["user_id", "item_id", "timestamp"], orient="row")
    users = pl.DataFrame(USERS, schema=list(USER_NAMES), orient="row")
    items = pl.DataFrame(ITEMS, schema=["item_id", "title", "year", "genres"], orient="row")
    return events, users, items


def write_csv(folder):
    events, users, items = frames()
    events.write_csv(folder / "interactions.csv")
    users.write_csv(folder / "users.csv")
    items.with_columns(pl.col("genres").list.join("|")).write_csv(folder / "items.csv")
    return folder


def write_parquet(folder):
    events, users, items = frames()
    events.write_parquet(folder / "interactions.parquet")
    users.write_parquet(folder / "users.parquet")
    items.write_parquet(folder / "items.parquet")
    return folder


def write_jsonl(folder):
    for name, frame in zip(("interactions", "users", "items"), frames(), strict=True):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in frame.to_dicts()]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def bigrec_rows():
    titles = {i: f"{t} ({y})" for i, t, y, _ in ITEMS}
    rows = []
    for user in range(1, 7):
        *history, target = [titles[i] for u, i, _ in EVENTS if u == user]
        listed = ", ".join(f'"{title}"' for title in history)
        rows.append(
            {
                "instruction": "Given a list of movies, please recommend a new one.",
                "input": f"The user has watched the following movies before: {listed}\n ",
                "output": f'"{target}"',
            }
        )
    return rows


def tallrec_rows():
    return [
        {
            "instruction": 'Identify whether the user will like it by answering "Yes." or "No.".',
            "input": 'User Preference: "Heat (1995)", "Rock, The (1996)", "Babe (1995)", '
            '"A "quoted" one", "Seven (1995)"\nUser Unpreference: "Othello (1995)"\n'
            'Whether the user will like the target movie "Fargo (1996)"?',
            "output": answer,
        }
        for answer in ("Yes.", "No.")
    ]


def write_bigrec(folder):
    (folder / "train.json").write_text(json.dumps(bigrec_rows(), indent=1))
    return folder


def write_tallrec(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tallrec_rows()))
    return folder


TABLES = {
    "recbole": write_recbole,
    "dat": write_dat,
    "u": write_u_data,
    "csv": write_csv,
    "parquet": write_parquet,
    "jsonl": write_jsonl,
}
INSTRUCTIONS = {"bigrec": write_bigrec, "tallrec": write_tallrec}
