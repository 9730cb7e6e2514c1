"""Messages with the headers of a tracing SDK, as Sentry's and Datadog's integrations with Celery send them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from celery.signals import before_task_publish

__all__ = ["add_tracing_headers", "tracing"]


def add_tracing_headers(headers: dict[str, Any], **_: Any) -> None:
    """Add a trace to a message's headers, and to a dict ``headers`` within them.

    Celery hands a body only the inner dict as ``self.request.headers``, so both SDKs write there; a message that the
    body's process publishes again has what it had.
    """
    trace, span = uuid4().hex, uuid4().hex[:16]
    traced = {
        "sentry-trace": f"{trace}-{span}-1",
        "baggage": f"sentry-trace_id={trace},sentry-environment=storm,sentry-sampled=true",
        "x-datadog-trace-id": str(int(trace[:15], 16)),
        "x-datadog-parent-id": str(int(span[:15], 16)),
    }
    headers.update(traced)
    headers.setdefault("headers", {}).update(traced)


@contextmanager
def tracing(*, on: bool) -> Iterator[None]:
    """Trace what this process publishes in the block."""
    if on:
        before_task_publish.connect(add_tracing_headers)
    try:
        yield
    finally:
        before_task_publish.disconnect(add_tracing_headers)
