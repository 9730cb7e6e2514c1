"""The one error of the chaos command."""

__all__ = ["StormError"]


class StormError(Exception):
    """A part of the storm did not start; the text says which, and what to do."""
