"""Claims to keep, and a keeper that renews them when the test says so."""

import threading
from collections.abc import Callable
from typing import Any

from idempotent_tasks.core.lease import LeaseRenewer, LeaseTerms, RunContext
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.core.store import Store
from idempotent_tasks.events import Event
from tests.support.guarding import grant

__all__ = ["TERMS", "ManualRenewer", "start", "unseen"]

TERMS = LeaseTerms(lease_seconds=60, renewed=True, longest_seconds=None)


class ManualRenewer(LeaseRenewer):
    """A keeper without its threads: renewals happen when the test asks for them."""

    def _spawn(self, work: Callable[[], None]) -> threading.Thread:
        """Leave the work to the test."""
        return threading.Thread(target=work)


def unseen(_: Event) -> None:
    """Observe nothing."""


def start(store: Store, owner: str = "one", lease: float = 60, **given: Any) -> RunContext:
    """Claim and return the run."""
    return RunContext(grant(store, owner, lease_seconds=lease, **given), RetryingStore(store=store, observe=unseen))
