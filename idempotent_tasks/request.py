"""The path by which a ``Request`` class of your own finds the one to derive from."""

from idempotent_tasks.worker.request import GuardedRequest

__all__ = ["GuardedRequest"]
