"""Why the demo could not be played to its end, which says nothing on the promise; shown by the command line."""

from click import ClickException

__all__ = ["DemoError", "MissingExtraError", "PartError", "UnsettledError"]


class DemoError(ClickException):
    """The demo could not be played."""

    exit_code = 2


class MissingExtraError(DemoError):
    """The demo's own dependencies are not installed."""


class PartError(DemoError):
    """A server or a worker did not come up, or ended unasked."""


class UnsettledError(DemoError):
    """The broker still holds messages at the end of a phase's time."""
