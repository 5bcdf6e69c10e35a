"""Scores and losses kept on disk, a few users a file: no adapter is measured twice.

An evaluation of a real language model takes many minutes. What it gave is named by a digest of the
adapter, the users and the way of scoring, so that a stage that was killed goes on where it was, and
the figures before and after that one stage measured are read by the next.
"""

import json
from pathlib import Path

import numpy as np
import torch
from fudlr.common.files import atomic_file
from fudlr.common.progress import track
from fudlr.train.checkpoint import digest
from safetensors.torch import load_file, save_file

USERS = 20
"""In a file: what a kill costs at most."""


def keep_evaluations(run, folder: Path):
    """`run`, whose recommender reads from `folder` what it has measured before."""
    kept = Kept(run, folder)
    run.recommender.evaluate, run.recommender.losses = kept.evaluate, kept.losses
    return run


class Kept:
    """In place of a recommender's `evaluate` and `losses`."""

    def __init__(self, run, folder: Path) -> None:
        self.run, self.folder = run, folder
        recommender = run.recommender
        self.measure, self.measure_losses = recommender.evaluate, recommender.losses
        config = run.config
        way = [
            run.recommender.name, run.recommender.record(), config.model.base,
            config.recommender.model_dump(), config.data.model_dump(),
        ]  # fmt: skip
        self.way = json.dumps(way, sort_keys=True, default=str)

    def evaluate(self, samples, size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [n, M] and losses [n]."""

        def measure(part):
            return dict(zip(("scores", "losses"), self.measure(part, size), strict=True))

        found = self._kept(samples, "", measure)
        return found["scores"], found["losses"]

    def losses(self, samples, size: int = 256) -> torch.Tensor:
        """Losses [n] alone."""
        measure = self.measure_losses
        return self._kept(samples, "losses", lambda part: {"losses": measure(part, size)})["losses"]

    def _kept(self, samples, kind: str, measure) -> dict[str, torch.Tensor]:
        theta = self.run.engine.theta()
        cuts = range(0, len(samples), USERS)
        found = []
        for start in track(cuts, len(cuts), "evaluate users"):
            part = samples.take(np.arange(start, min(start + USERS, len(samples))))
            key = digest([theta, torch.from_numpy(part.ids.copy())], self.way + kind)
            path = self.folder / f"{key}.safetensors"
            if not path.is_file():
                with atomic_file(path) as temporary:
                    save_file(measure(part), temporary)
            found.append(load_file(path))
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}
