"""Errors of the demo itself, printed by click; none means that the library charged twice or not at all."""

from click import ClickException

__all__ = ["DemoError", "MissingExtraError", "PartError", "UnsettledError"]


class DemoError(ClickException):
    """The demo could not run; the base class of its errors."""

    exit_code = 2


class MissingExtraError(DemoError):
    """The extra ``demo`` is not installed."""


class PartError(DemoError):
    """A server or a worker did not start, or exited unexpectedly."""


class UnsettledError(DemoError):
    """The broker still held messages when a phase's time was over."""
