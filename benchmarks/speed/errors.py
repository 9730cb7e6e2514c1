"""The one error of the speed command."""

__all__ = ["SpeedError"]


class SpeedError(Exception):
    """A part cannot be measured here; the text says why, and what to do."""
