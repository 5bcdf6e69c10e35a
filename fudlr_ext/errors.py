"""The errors that the engine raises on purpose: what was asked, what was found, what to do."""

from __future__ import annotations


class EngineError(ValueError):
    """Parent of every error that this package raises on purpose.

    The native ops report wrong arguments as plain `ValueError` in the same three parts.

    Args:
        asked: What the caller wanted.
        found: What stood in the way.
        remedy: What to do about it.
    """

    def __init__(self, asked: str, found: str, remedy: str) -> None:
        super().__init__(f"{asked}: {found}. {remedy}")
        self.asked = asked
        self.found = found
        self.remedy = remedy


class UnsupportedLayerError(EngineError):
    """An adapter of a kind that the engine does not know, or is not in the state it needs."""


class NoGradientError(EngineError):
    """An adapter layer that took no part in the loss."""


class NonFiniteLossError(EngineError):
    """A sample's loss is NaN or infinite."""
