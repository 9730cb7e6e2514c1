"""The public import path of `GuardedRequest`, for ``Request`` classes that derive from it."""

from idempotent_tasks.worker.request import GuardedRequest

__all__ = ["GuardedRequest"]
