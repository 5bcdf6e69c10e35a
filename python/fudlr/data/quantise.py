"""Codes for items that have none: residual k-means on vectors of their text, or on vectors given.

    r₁ = x,   c_l = argmin_c ‖r_l − m_lc‖,   r_(l+1) = r_l − m_(l,c_l),   l = 1 … L

The centroids m_l are those of k-means on r_l (k-means++ seeds, Lloyd's iterations). Items that come
out with the codes of another share the last ones out by distance, so that every item has L codes of
its own; where a beginning has more items than the codes after it can tell apart, they share those
before out as well.

A text's vector is the sum of its words' random vectors with tf-idf weights (random indexing,
Kanerva et al. 2000), of unit length in each column of the items' table; words of one item alone
are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from math import ceil, log, log2
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fudlr.common.errors import DataError
from fudlr.data.codes import COLUMN, Codes, written
from fudlr.data.interactions import Floats, Ints

WORD = re.compile(r"\w+")
WIDTH = 64
"""Numbers of a text's vector, for each column."""
ITERATIONS = 50
"""Of Lloyd's, at most."""
ROUNDING = 1e-12
"""Squared distance, over the longest point's square, below which two points are one."""
BLOCK = 2**22
"""Distances that are held at a time."""


def make_codes(
    items: pl.DataFrame,
    vectors: Floats | None = None,
    *,
    levels: int = 3,
    size: int | None = None,
    seed: int = 0,
) -> tuple[Codes, int]:
    """Codes of every item [M], the same for the same seed; and how many got another code than
    their nearest, because that was taken.

    Args:
        items: The items' table; its text columns are what vectors are made of.
        vectors: [M, width] in the order of `items`, in place of those.
        levels: L, codes of an item.
        size: Codes to choose from at each place; the power of two from 2·M^(1/L) on where None.
        seed: Of everything random.

    Raises:
        DataError: Vectors of other items, or not finite; or more items than tuples of codes.
    """
    rng = np.random.default_rng(seed)
    count = items.height
    rest = text_vectors(items, rng) if vectors is None else np.array(vectors, dtype=np.float64)
    asked = f"codes of {count} items were to be made"
    if rest.ndim != 2 or len(rest) != count or not np.isfinite(rest).all():
        found = f"their vectors are {list(rest.shape)}, or not finite"
        raise DataError(asked, found, f"Give finite numbers, [{count}, width]")
    size = size or 2 ** ceil(log2(max(2 * count ** (1 / levels), 4)))
    if count > size**levels:
        found = f"{levels} codes of {size} each tell no more than {size**levels} items apart"
        raise DataError(asked, found, "Raise --size, or --levels")
    codes = np.zeros((count, levels), dtype=np.int64)
    moved = np.zeros(count, dtype=bool)
    for level in range(levels):
        centroids = kmeans(rest, size, rng)
        square = np.full((count, size), np.inf)  # fewer distinct points have fewer centroids
        square[:, : len(centroids)] = _square(rest, centroids)
        own = _shared_out(codes[:, :level], square, size ** (levels - 1 - level))
        moved |= own != square.argmin(1)
        codes[:, level] = own
        rest = rest - np.pad(centroids, ((0, size - len(centroids)), (0, 0)))[own]
    return [written(row) for row in codes.tolist()], int(moved.sum())


def _shared_out(beginnings: Ints, square: Floats, most: int) -> Ints:
    """A code of every item [M], of which each takes at most so many items with one beginning.

    Args:
        beginnings: [M, l], the codes before.
        square: [M, size], the items' squared distances to the centroids; the nearest pairs first.
        most: Items that a code can still tell apart from there on.
    """
    found = square.argmin(1)
    _, group, sizes = np.unique(beginnings, axis=0, return_inverse=True, return_counts=True)
    for number in np.flatnonzero(sizes > most):
        items = np.flatnonzero(group.ravel() == number)
        if np.bincount(found[items]).max() <= most:
            continue
        left = np.full(square.shape[1], most)
        open_ = np.ones(len(items), dtype=bool)
        for pair in square[items].argsort(axis=None, kind="stable").tolist():
            row, code = divmod(pair, square.shape[1])
            if open_[row] and left[code]:
                found[items[row]] = code
                open_[row] = False
                left[code] -= 1
    return found


def kmeans(points: Floats, size: int, rng: np.random.Generator) -> Floats:
    """Centroids of `points` [M, width]: `size` of them, or one for each distinct point."""
    centroids = points[rng.integers(len(points), size=1)]
    left = _square(points, centroids)[:, 0]
    same = 1e-20 + ROUNDING * (points**2).sum(1).max()
    while len(centroids) < size and left.max() > same:
        left[left <= same] = 0.0
        chosen = points[rng.choice(len(points), size=1, p=left / left.sum())]
        centroids = np.concatenate([centroids, chosen])
        left = np.minimum(left, _square(points, chosen)[:, 0])
    before = None
    for _ in range(ITERATIONS):
        own = nearest(points, centroids)
        if before is not None and (own == before).all():
            break
        before = own
        counts = np.bincount(own, minlength=len(centroids))
        sums = np.zeros_like(centroids)
        np.add.at(sums, own, points)
        # A centroid without points stays where it is.
        centroids = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centroids)
    return centroids


def nearest(points: Floats, centroids: Floats) -> Ints:
    """The nearest centroid of every point, [M]."""
    step = max(1, BLOCK // len(centroids))
    parts = [points[at : at + step] for at in range(0, len(points), step)]
    return np.concatenate([_square(part, centroids).argmin(1) for part in parts])


def _square(points: Floats, centroids: Floats) -> Floats:
    """Squared distances [M, size]."""
    found = (points**2).sum(1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(1)
    clipped: Floats = np.maximum(found, 0.0)
    return clipped


def text_vectors(items: pl.DataFrame, rng: np.random.Generator) -> Floats:
    """Vectors of what the items' columns say, [M, width · columns]."""
    columns = [_words(items[name]) for name in items.columns if name not in ("item_id", COLUMN)]
    known = [part for words in columns if (part := _vectors(words, rng)) is not None]
    if not known:
        raise DataError(
            f"codes of {items.height} items were to be made from their text",
            "no word stands in two of them",
            "Give them titles or genres, or vectors with --vectors",
        )
    return np.concatenate(known, axis=1)


def _words(column: pl.Series) -> list[list[str]]:
    """Words of every text; of a list each value as it is."""
    if column.dtype == pl.List(pl.String):
        return [list(row or ()) for row in column.to_list()]
    return [WORD.findall(str(text).lower()) if text else [] for text in column.to_list()]


def _vectors(texts: list[list[str]], rng: np.random.Generator) -> Floats | None:
    """Unit vectors [M, WIDTH], zero for a text without known words; None where none has any."""
    among = Counter(word for words in texts for word in set(words))
    vocabulary = sorted(word for word, count in among.items() if 1 < count < len(texts))
    if not vocabulary:
        return None
    place = {word: at for at, word in enumerate(vocabulary)}
    weight = [log(len(texts) / among[word]) for word in vocabulary]
    directions = rng.standard_normal((len(vocabulary), WIDTH))
    found: NDArray[np.float64] = np.zeros((len(texts), WIDTH))
    for row, words in enumerate(texts):
        for word in words:
            if (at := place.get(word)) is not None:
                found[row] += weight[at] * directions[at]
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(length > 0, length, 1.0)


def read_vectors(path: Path, items: pl.DataFrame) -> Floats:
    """Vectors of the items [M, width] from a file.

    Args:
        path: Parquet with `item_id` and `vector` (a list of numbers), or .npy with a row an item,
            in the order of the items' ids.
        items: The items' table.

    Raises:
        DataError: It cannot be read, or lacks an item.
    """
    asked = f"vectors of {items.height} items were to be read from {path}"
    remedy = "Name a .npy file, or Parquet with item_id and vector"
    try:
        if path.suffix == ".npy":
            found: Floats = np.load(path, allow_pickle=False).astype(np.float64)
            return found
        table = pl.read_parquet(path, glob=False).with_columns(pl.col("item_id").cast(pl.String))
        own = items.select("item_id").join(table, on="item_id", how="left", maintain_order="left")
        if own["vector"].null_count() or own.height != items.height:
            lost = own.filter(pl.col("vector").is_null())["item_id"]
            found_ = f"{lost.len()} items have none, or some have several ({', '.join(lost[:3])})"
            raise DataError(asked, found_, "Give every item one row")
        return np.array(own["vector"].to_list(), dtype=np.float64)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(asked, f"it cannot be read ({text})", remedy) from error
