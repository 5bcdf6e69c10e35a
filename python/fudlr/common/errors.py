"""The errors that users meet. A message says what was asked, what was found, and what to do."""

from __future__ import annotations


class FudlrError(Exception):
    """Parent of every error that this package raises on purpose.

    Args:
        asked: What the caller wanted.
        found: What stood in the way.
        remedy: What to do about it.
    """

    exit_code = 1

    def __init__(self, asked: str, found: str, remedy: str) -> None:
        super().__init__(f"{asked}: {found}. {remedy}")
        self.asked = asked
        self.found = found
        self.remedy = remedy


class UsageError(FudlrError):
    """An option, a name or a value that cannot be right; the command line exits with 2."""

    exit_code = 2


class DataError(FudlrError):
    """Input data that is missing, truncated or inconsistent."""


class ModelError(FudlrError):
    """A model or adapter that cannot be used as asked."""


class RefusedError(FudlrError):
    """A result that bears a signature of failure, and is not given unless it is forced."""


class NumericalError(FudlrError):
    """A computation that left the range in which its result means something."""


class StoreError(FudlrError):
    """A store that cannot be used as asked: damaged, mixed, foreign or incomplete."""


class RecordingWarning(UserWarning):
    """A training goes on, or ended well, but leaves no store or less of one than was asked."""
