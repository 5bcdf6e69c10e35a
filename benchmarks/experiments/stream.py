"""Interactions made up as a stream: block by block of users, the same however far it is read.

User u's items are the first `LENGTH` arrivals of a race in which item i comes at E_i / w_i with
E_i ~ Exp(1): they are drawn without replacement, each with a chance in proportion to its weight
(Plackett and Luce), and then put into a random order.

    w_i = rank_i^(−SKEW) · e^(TASTE · [i is of u's genre])

Block b has a generator of its own, seeded by (seed, b), so that any block can be had alone, and a
stream cut at 10⁴ interactions is the beginning of one cut at 10⁷. No more than a block is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from fudlr.data import Interactions

LENGTH = 50
"""Interactions of a user."""
SKEW, TASTE, GENRES = 0.8, 2.0, 20


@dataclass(frozen=True)
class Stream:
    """Interactions without end, over one catalogue.

    Attributes:
        seed: The same seed gives the same stream.
        n_items: M.
        block_users: Users in a block.
    """

    seed: int = 0
    n_items: int = 1000
    block_users: int = 200

    @property
    def block_size(self) -> int:
        """Interactions in a block."""
        return self.block_users * LENGTH

    def blocks(self, interactions: int) -> Iterator[Interactions]:
        """The first `interactions` of them, a multiple of a block's, block by block."""
        for number in range(interactions // self.block_size):
            yield self.block(number)

    def block(self, number: int) -> Interactions:
        """Block `number`; users and times are counted within it."""
        rng = np.random.default_rng([self.seed, number])
        genre = rng.integers(GENRES, size=self.block_users)
        own = np.arange(self.n_items) % GENRES == genre[:, None]
        weight = self._popularity() * np.exp(TASTE * own)
        arrival = rng.standard_exponential((self.block_users, self.n_items)) / weight
        item = np.argpartition(arrival, LENGTH - 1, axis=1)[:, :LENGTH]
        item = rng.permuted(item, axis=1)
        first = number * self.block_users
        users = pl.DataFrame({"user_id": [f"u{first + u}" for u in range(self.block_users)]})
        user = np.repeat(np.arange(self.block_users), LENGTH)
        time = np.tile(np.arange(LENGTH), self.block_users)
        return Interactions(user, item.reshape(-1).astype(np.int64), time, users, self.items())

    def first(self, blocks: int) -> Interactions:
        """The first blocks as one table, for a model to be trained on."""
        parts = [self.block(number) for number in range(blocks)]
        user = [part.user + number * self.block_users for number, part in enumerate(parts)]
        return Interactions(
            np.concatenate(user),
            np.concatenate([part.item for part in parts]),
            np.concatenate([part.time for part in parts]),
            pl.concat([part.users for part in parts]),
            self.items(),
        )

    def spread(self, interactions: int, count: int) -> Interactions:
        """`count` users spread evenly over the first `interactions`."""
        users = np.linspace(0, interactions // LENGTH - 1, count).round().astype(np.int64)
        number, within = np.divmod(users, self.block_users)
        items, tables = [], []
        for at in np.unique(number):
            block, chosen = self.block(int(at)), within[number == at]
            items.append(block.item.reshape(-1, LENGTH)[chosen])
            tables.append(block.users[chosen])
        item = np.concatenate(items).reshape(-1)
        user = np.repeat(np.arange(count), LENGTH)
        time = np.tile(np.arange(LENGTH), count)
        return Interactions(user, item, time, pl.concat(tables), self.items())

    def items(self) -> pl.DataFrame:
        """The catalogue, the most popular item first."""
        names = [f"i{i}" for i in range(self.n_items)]
        genres = [[f"genre {i % GENRES}"] for i in range(self.n_items)]
        return pl.DataFrame({"item_id": names, "title": names, "genres": genres})

    def _popularity(self) -> np.ndarray:
        return np.arange(1, self.n_items + 1) ** -SKEW
