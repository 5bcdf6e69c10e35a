"""Most-popular removal: the samples with the most popular targets, retrained without them."""

import torch

from fudlr.compare.base import Point, Rival, Setting


def _points(setting: Setting) -> list[Point]:
    samples = setting.run.split.train
    popularity = torch.from_numpy(setting.run.split.popularity[samples.target])
    weights = torch.ones(setting.n)
    # A stable sort: of equally popular targets the earlier samples leave first.
    order = popularity.sort(descending=True, stable=True).indices
    weights[order[: setting.room]] = 0
    name = f"{setting.room / setting.n:.0%} removed"
    return setting.retrained([(name, weights)], "most-popular removal")


RIVAL = Rival(
    "most-popular removal",
    "as many samples removed, those with the most popular targets; retrained",
    _points,
    names_samples=True,
)
