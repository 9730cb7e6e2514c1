"""Time-outs of boto3's clients that never exceed the time that is left for a call (`idempotent_tasks.core.retry`)."""

import math
from typing import Any, Self

from botocore.httpsession import URLLib3Session
from urllib3.util import Timeout

from idempotent_tasks.core.retry import time_left

__all__ = ["obey_time_left"]


class _NoTimeLeftError(Exception):
    """A request was not begun: of no kind that botocore, or a retry of its own, takes for a fault of the network."""


class _TimeLeft(Timeout):
    """The time-outs of a client, and for each request no more than the time that is left.

    urllib3 keeps one such object for all connections to a place, and makes a copy for each request.
    """

    @classmethod
    def of(cls, timeout: Any) -> Self:
        """Return the same time-outs, given as one of urllib3's or as a number of seconds."""
        if isinstance(timeout, Timeout):
            return cls(connect=timeout._connect, read=timeout._read, total=timeout.total)  # noqa: SLF001
        return cls(connect=timeout, read=timeout)

    def clone(self) -> Timeout:
        left = time_left()
        if left == math.inf:
            return super().clone()
        if left <= 0:
            raise _NoTimeLeftError
        whole = left if not isinstance(self.total, int | float) else min(left, self.total)
        return Timeout(connect=self._connect, read=self._read, total=whole)


def obey_time_left(client: Any) -> None:
    """Have each request of a client end within the time that its caller has left; without a limit nothing changes.

    boto3 has no time-outs for one request, so this sets those of the client's HTTP session.  What is no client of
    boto3's, such as a test's stand-in, stays as it is.

    Args:
        client: a client of boto3's.
    """
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    manager = getattr(session, "_manager", None)
    if not isinstance(session, URLLib3Session) or manager is None or isinstance(session._timeout, _TimeLeft):  # noqa: SLF001
        return
    session._timeout = _TimeLeft.of(session._timeout)  # noqa: SLF001 - for its proxies, which come later
    manager.connection_pool_kw["timeout"] = session._timeout  # noqa: SLF001
