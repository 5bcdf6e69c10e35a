"""Interactions with bias of two kinds planted in training samples, the truth known.

Two groups of users differ in which *signature* items they choose, whose genres are spread alike:
taste tells the groups apart and gives them equal genres. The early half of every history, which
pretrains the base model, also has a run of `niche` items of one genre, `p` or `q`, whatever the
group, and most of a few `blockbusters`; the later half has neither. Then, at training positions
alone, items are replaced:

    popularity   a user gets a blockbuster that it has not had
    attribute    a user of group A gets an item of genre p, one of group B an item of genre q

A ranking by target popularity can find the first kind, the rarer one; items of the second are
about as popular as any signature item.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fudlr.data import Interactions
from numpy.typing import NDArray

from experiments.common import write_recbole

Ints = NDArray[np.int64]
EARLY, LATE = 16, 12
"""Interactions of a user in either part; the last two of the late part judge."""
SIGNATURE, NICHE, BLOCKBUSTERS = 60, 12, 4
"""Items: signature items of each group, niche items of each genre, blockbusters."""
RUN = 3
"""Niche items in a row, so that the base model learns which belong together."""
HAD = 0.8
"""Chance that a user has had a blockbuster."""
CROSS = 2
"""Signature items of the other group, in either part."""
NEUTRAL = 1
"""Genres that signature items and blockbusters are spread over alike."""
KINDS = ("popularity", "attribute")


@dataclass(frozen=True)
class Planted:
    """The data, and the planted (user, item) pairs of each kind."""

    interactions: Interactions
    pairs: dict[str, list[tuple[str, str]]]


def planted_data(n_users: int, share: float, popular: float = 0.3, seed: int = 0) -> Planted:
    """Draw the data.

    Args:
        n_users: Users, half of either group.
        share: Share of the training positions to plant at.
        popular: Share of the plants that are of the first kind.
        seed: The same seed gives the same data.
    """
    rng = np.random.default_rng(seed)
    group = np.arange(n_users) % 2
    own = np.arange(2 * SIGNATURE).reshape(2, SIGNATURE)
    niche = 2 * SIGNATURE + np.arange(2 * NICHE).reshape(2, NICHE)
    blockbusters = 2 * SIGNATURE + 2 * NICHE + np.arange(BLOCKBUSTERS)
    item = np.stack([_history(rng, own, niche, blockbusters, int(g)) for g in group])
    spots = [(u, EARLY + t) for u in range(n_users) for t in range(LATE - 2)]
    chosen = rng.permutation(len(spots))[: round(share * len(spots))]
    pairs: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    for i, place in enumerate(chosen):
        user, position = spots[place]
        kind = KINDS[0] if i < popular * len(chosen) else KINDS[1]
        pool = blockbusters if kind == KINDS[0] else niche[group[user]]
        free = np.setdiff1d(pool, item[user])
        if len(free):
            item[user, position] = rng.choice(free)
            pairs[kind].append((f"u{user}", f"i{item[user, position]}"))
    length = EARLY + LATE
    users = pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in range(n_users)],
            "gender": np.where(group == 0, "A", "B"),
        }
    )
    user = np.repeat(np.arange(n_users), length)
    time = np.tile(np.arange(length), n_users)
    return Planted(Interactions(user, item.reshape(-1), time, users, _items()), pairs)


def _history(
    rng: np.random.Generator, own: Ints, niche: Ints, blockbusters: Ints, group: int
) -> Ints:
    """One user's items: niche items and blockbusters early, signature items throughout."""
    favourite = rng.permutation(own[group])
    other = rng.permutation(own[1 - group])
    had = blockbusters[rng.random(len(blockbusters)) < HAD]
    early = np.concatenate([had, other[:CROSS], favourite])[: EARLY - RUN]
    taken = EARLY - RUN - len(had) - CROSS
    run = rng.permutation(niche[rng.integers(2)])[:RUN]
    at = rng.integers(EARLY - RUN + 1)
    early = np.insert(rng.permutation(early), at, run)
    late = np.concatenate([favourite[taken:][: LATE - CROSS], other[CROSS : 2 * CROSS]])
    return np.concatenate([early, rng.permutation(late)]).astype(np.int64)


def _items() -> pl.DataFrame:
    signature = 2 * SIGNATURE
    genres = [[f"neutral {i % NEUTRAL}"] for i in range(signature)]
    genres += [["p"]] * NICHE + [["q"]] * NICHE
    genres += [[f"neutral {i % NEUTRAL}"] for i in range(BLOCKBUSTERS)]
    ids = [f"i{i}" for i in range(len(genres))]
    titles = [f"Item {i}" for i in range(len(genres))]
    return pl.DataFrame({"item_id": ids, "title": titles, "genres": genres})


def write_planted(folder: Path, planted: Planted) -> Path:
    """Write files that `data.source` reads, and planted.csv with the truth."""
    write_recbole(folder, "planted", planted.interactions)
    pairs = [(*pair, kind) for kind, found in planted.pairs.items() for pair in found]
    truth = pl.DataFrame(pairs, schema=["user_id", "target", "kind"], orient="row")
    truth.write_csv(folder / "planted.csv")
    return folder / "planted.csv"


def read_planted(path: Path, table: pl.DataFrame) -> NDArray[np.bool_]:
    """Which samples of a mask table the truth names, [n]."""
    given, keys = pl.read_csv(path), ["user_id", "target"]
    known = table.select(keys).with_row_index("row")
    truth = np.zeros(len(table), dtype=bool)
    truth[known.join(given, on=keys, how="semi")["row"].to_numpy()] = True
    return truth


def found(table: pl.DataFrame, truth: NDArray[np.bool_]) -> dict[str, Any]:
    """How a mask table ranks the samples that `truth` [n] marks.

    Args:
        table: With columns `score` (low is removed first), `mask` and `target_popularity`.
        truth: Which samples were planted.
    """
    score = table["score"].to_numpy()
    removed = table["mask"].to_numpy() > 0
    popular = -table["target_popularity"].to_numpy().astype(float)
    return {
        "planted": int(truth.sum()),
        "samples": len(truth),
        "first": first_share(score, truth),
        "first_by_popularity": first_share(popular, truth),
        "chance": float(truth.mean()),
        "removed": int(removed.sum()),
        "planted_among_removed": int((removed & truth).sum()),
    }


def first_share(order: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """Share of the P planted samples among the first P when sorted by `order`, ascending.

    Of equal values each has its fair part: the ranking by a count must not profit from the order
    of the samples.
    """
    count = int(truth.sum())
    last = np.sort(order)[count - 1]
    sure, tied = order < last, order == last
    room = count - int(sure.sum())
    return float((truth & sure).sum() + room * truth[tied].mean()) / count
