"""Claim requests and outcomes for tests of stores, with everything filled in that a test does not care about."""

from typing import Any, Final

from idempotent_tasks.core.records import Claim, ClaimRequest, Granted, Outcome, Status, reservation_owner
from idempotent_tasks.core.store import Store

__all__ = [
    "FAILED",
    "KEY",
    "LEASE_SECONDS",
    "RETENTION_SECONDS",
    "done",
    "grant",
    "request_by",
    "reservation",
    "reserve",
]

KEY: Final = "shop.charge#17"
LEASE_SECONDS: Final = 30.0
RETENTION_SECONDS: Final = 3600.0
FAILED: Final = Outcome(status=Status.FAILED, codec="json", data='"no"', error="ValueError")


def request_by(owner: str = "one", **given: Any) -> ClaimRequest:
    """Return a delivery's request to claim `KEY`; its task id is ``id-{owner}``."""
    return ClaimRequest(
        **{
            "key": KEY,
            "owner": owner,
            "lease_seconds": LEASE_SECONDS,
            "retention_seconds": RETENTION_SECONDS,
            "task": "shop.charge",
            "task_id": f"id-{owner}",
            "worker": "worker@host",
            **given,
        }
    )


def grant(store: Store, owner: str = "one", **given: Any) -> Claim:
    """Claim `KEY` and return the claim, which must be granted."""
    answer = store.claim(request_by(owner, **given))
    assert isinstance(answer, Granted), answer
    return answer.claim


def reservation(task_id: str, **given: Any) -> ClaimRequest:
    """Return a producer's request to reserve `KEY` for the delivery of a task."""
    return request_by(reservation_owner(task_id), task_id=task_id, **given)


def reserve(store: Store, task_id: str, **given: Any) -> Claim:
    """Reserve `KEY` and return the reservation, which must be granted."""
    answer = store.claim(reservation(task_id, **given))
    assert isinstance(answer, Granted), answer
    return answer.claim


def done(data: str = '"done"') -> Outcome:
    """Return a completed outcome with this JSON text."""
    return Outcome(status=Status.COMPLETED, codec="json", data=data)
