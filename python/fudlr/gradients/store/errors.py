"""What is wrong with a store, by the name of the shard."""

from __future__ import annotations

from fudlr.common.errors import FudlrError


class StoreError(FudlrError):
    """A store that cannot be used as asked: damaged, mixed, foreign or incomplete."""


class RecordingWarning(UserWarning):
    """A training goes on, or ended well, but leaves no store."""
