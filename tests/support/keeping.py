"""Claims to keep, and a keeper that renews them when the test says so."""

import threading
from collections.abc import Callable
from typing import Any

from idempotent_tasks.active_run import ActiveRun
from idempotent_tasks.events import Event
from idempotent_tasks.lease import Keeper, Term
from idempotent_tasks.records import Claim
from idempotent_tasks.stores import Store
from tests.support.guarding import grant

__all__ = ["TERM", "ManualKeeper", "start", "unseen"]

TERM = Term(lease_seconds=60, renewed=True, longest_seconds=None)


class ManualKeeper(Keeper):
    """A keeper without its threads: renewals happen when the test asks for them."""

    def _spawn(self, work: Callable[[], None]) -> threading.Thread:
        """Leave the work to the test."""
        return threading.Thread(target=work)


def unseen(_: Event) -> None:
    """Observe nothing."""


def no_release(_claim: Claim, _reason: str, *, crashed: bool) -> None:
    """Release nothing."""


def start(store: Store, owner: str = "one", lease: float = 60, **given: Any) -> ActiveRun:
    """Claim and return the run."""
    return ActiveRun(grant(store, owner, lease_seconds=lease, **given), no_release)
