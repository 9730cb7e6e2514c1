"""A guard, and a keeper of claims, without Celery: requests, policies and interrupts made short for the unit tests."""

import math
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded

from idempotent_tasks.active_run import ActiveRun
from idempotent_tasks.events import Event
from idempotent_tasks.guard import Guard, Keeping
from idempotent_tasks.keeper import Keeper, Term
from idempotent_tasks.policy import Idempotency
from idempotent_tasks.records import Claim, ClaimRequest, Granted, Outcome, Status
from idempotent_tasks.stores import Store
from idempotent_tasks.verdicts import Verdict
from tests.support.stores import Step

__all__ = [
    "KEY",
    "TERM",
    "Bench",
    "Broken",
    "Interrupt",
    "ManualKeeper",
    "done",
    "grant",
    "no_keeping",
    "request_by",
    "start",
    "unseen",
]

KEY = "shop.charge#17"
LEASE_SECONDS = 30.0
RETENTION_SECONDS = 3600.0

E = TypeVar("E", bound=Event)


class Interrupt(SoftTimeLimitExceeded):
    """Raised from outside at any moment, as a soft time limit is."""


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


def done(data: str = '"done"') -> Outcome:
    """Return a completed outcome with this JSON text."""
    return Outcome(status=Status.COMPLETED, codec="json", data=data)


def no_keeping(_: ActiveRun) -> AbstractContextManager[None]:
    """Let the claim live its lease."""
    return nullcontext()


@dataclass
class Bench:
    """One store, the events that deliveries of `KEY` caused, and the bodies that ran."""

    store: Store
    seen: list[Event] = field(default_factory=list)
    #: The owners whose bodies ran, in order.
    ran: list[str] = field(default_factory=list)

    def guard(self, keeping: Keeping = no_keeping, dies_at: float = math.inf, **policy: Any) -> Guard:
        """Return a guard over the store that `Interrupt` can interrupt, and whose process dies at an epoch second."""
        return Guard(
            store=self.store,
            policy=Idempotency(**policy),
            observe=self.seen.append,
            keeping=keeping,
            interrupts=(Interrupt,),
            time_left=lambda: dies_at - self.store.clock.now(),
        )

    def deliver(self, owner: str = "one", value: Any = "done", *, guard: Guard | None = None, **given: Any) -> Verdict:
        """Deliver once; the body notes its owner, then returns the value, or raises it where it is an exception."""

        def body(run: ActiveRun) -> Any:
            self.ran.append(run.claim.owner)
            if isinstance(value, BaseException):
                raise value
            return value(run) if callable(value) else value

        return (guard or self.guard()).run(request_by(owner, **given), body)

    def events(self) -> list[str]:
        """Return the names of the events, in order."""
        return [type(event).__name__ for event in self.seen]

    def the(self, kind: type[E]) -> E:
        """Return the only event of a kind."""
        (event,) = [event for event in self.seen if isinstance(event, kind)]
        return event


class Broken(Protocol):
    """Makes a bench whose store takes the given steps; see `tests.support.stores.FaultyStore`."""

    def __call__(self, **plan: Iterable[Step]) -> Bench:
        """Return the bench."""
        ...


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
