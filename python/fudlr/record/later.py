"""Samples that came after a store was recorded: recorded beside it, appended, debiased alone.

    new = later_run(run, samples)
    record_run(new, "monday", projection=run.store().projection())
    both = append_run(run, new, ("run/store", "monday"), "so-far")
    debias(new, store="monday")  # without the old ones
    debias(both, store="so-far")

A sample's id is its position in the interactions, so both are of the same table.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fudlr.common.errors import UsageError
from fudlr.data import Samples
from fudlr.gradients.store import Store, joint_binding, merge
from fudlr.run import Run

NOTE = (
    "Some samples came after the training of this adapter. Their influences, with the sign turned, "
    "are those of training with them: use the mask for the next training, and not the updated "
    "adapter, which takes out what was never in."
)


def later_run(run: Run, samples: Samples) -> Run:
    """The run's model with `samples` in place of its training samples; it is in no folder.

    Raises:
        UsageError: There are none, or they are of another table.
    """
    if not len(samples) or samples.interactions is not run.interactions:
        raise UsageError(
            "later samples were to be recorded",
            "there are none" if not len(samples) else "they are of other interactions",
            "Give samples of the run's own interactions (run.interactions)",
        )
    split = replace(run.split, train=samples)
    return replace(run, split=split, folder=None, bound=None, notes=(NOTE,))


def append_run(run: Run, later: Run, stores: tuple[Path, Path], out: Path) -> Run:
    """Merge the stores of a run and of later samples into `out`, and return the run of all.

    Args:
        run: From `fudlr.load_run`, or from here.
        later: From `later_run`.
        stores: Of `run`, and of `later`.
        out: The joint store's folder; must not be there yet.

    Raises:
        StoreError: A store is damaged, not the one that belongs to its run, made with another
            projection, or a sample is in both.
    """
    for folder, part in zip(stores, (run, later), strict=True):
        Store.open(folder, part.binding)
    merge(stores, out, combine_data=True)
    position = np.concatenate([run.split.train.position, later.split.train.position])
    return replace(
        later_run(run, Samples(run.interactions, position)),
        bound=joint_binding([run.binding, later.binding]),
    )
