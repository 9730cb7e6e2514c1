"""A guard, and a renewer of claims, without Celery: requests, policies and interrupts made short for the unit tests."""

import math
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded

from idempotent_tasks.core.guard import Guard, Received, Replay, Verdict
from idempotent_tasks.core.lease import Lease, LeaseRenewer, LeaseTerms, RunContext, lease_terms
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.receipts import Following
from idempotent_tasks.core.records import ClaimRequest, Finished, Superseded
from idempotent_tasks.core.results import Recalled, Results
from idempotent_tasks.core.retry import Deadline, RetryingStore
from idempotent_tasks.core.store import ResultStore, Store
from idempotent_tasks.core.unrecorded import UnrecordedOutcomes
from idempotent_tasks.events import Event
from idempotent_tasks.testing.conformance.requests import KEY, done, grant, request_by
from tests.support.stores import Step

__all__ = [
    "KEY",
    "TERMS",
    "Bench",
    "Broken",
    "Interrupt",
    "Keeping",
    "ManualOutcomes",
    "ManualRenewer",
    "deliver",
    "done",
    "grant",
    "make_guard",
    "no_keeping",
    "request_by",
    "start",
    "unseen",
]

E = TypeVar("E", bound=Event)


class Interrupt(SoftTimeLimitExceeded):
    """Raised from outside at any moment, as a soft time limit is."""


def deliver(
    guard: Guard, asked: ClaimRequest, body: Callable[[RunContext], Any], recalled: Recalled | None = None
) -> Verdict | Replay:
    """Deliver once, and replay what is on record, as a handler does."""
    verdict = guard.deliver(asked, body)
    if isinstance(verdict, Finished | Received | Superseded):
        return guard.replay(asked, verdict.record, recalled)
    return verdict


Keeping = Callable[[RunContext], AbstractContextManager[None]]


def no_keeping(_: RunContext) -> AbstractContextManager[None]:
    """Let the claim live its lease."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptLease(Lease):
    """A lease that a function of the test's keeps."""

    keeping: Keeping

    def renewing(self, run: RunContext) -> AbstractContextManager[None]:
        """Keep the run's claim alive as the test wants it."""
        return self.keeping(run)


def make_guard(
    store: Store,
    observe: Callable[[Event], None],
    keeping: Keeping = no_keeping,
    *,
    policy: Idempotency | None = None,
    dies_at: float = math.inf,
    bucket: ResultStore | None = None,
    never_final: tuple[type[BaseException], ...] = (),
    watched: bool = False,
    following: Following | None = None,
) -> Guard:
    """Return a guard over a store that `Interrupt` can interrupt, and whose process dies at an epoch second."""
    clock, policy = store.clock, policy or Idempotency()
    deadline = Deadline() if dies_at == math.inf else Deadline(clock, clock.monotonic() + dies_at - clock.now())
    retrying = RetryingStore(store=store, observe=observe, deadline=deadline, interrupts=(Interrupt,))
    return Guard(
        store=retrying,
        policy=policy,
        lease=KeptLease(terms=lease_terms(policy, None), store=store, observe=observe, keeping=keeping),
        results=Results(store=retrying, policy=policy, bucket=bucket, never_final=never_final),
        watched=watched,
        following=following,
    )


@dataclass
class Bench:
    """One store, the events that deliveries of `KEY` caused, and the bodies that ran."""

    store: Store
    seen: list[Event] = field(default_factory=list)
    #: The owners whose bodies ran, in order.
    ran: list[str] = field(default_factory=list)

    def guard(
        self,
        keeping: Keeping = no_keeping,
        dies_at: float = math.inf,
        *,
        bucket: ResultStore | None = None,
        never_final: tuple[type[BaseException], ...] = (),
        watched: bool = False,
        following: Following | None = None,
        **policy: Any,
    ) -> Guard:
        """Return a guard over the store; see `make_guard`."""
        return make_guard(
            self.store,
            self.seen.append,
            keeping,
            policy=Idempotency(**policy),
            dies_at=dies_at,
            bucket=bucket,
            never_final=never_final,
            watched=watched,
            following=following,
        )

    def deliver(
        self,
        owner: str = "one",
        value: Any = "done",
        *,
        guard: Guard | None = None,
        recalled: Recalled | None = None,
        **given: Any,
    ) -> Verdict | Replay:
        """Deliver once; the body notes its owner, then returns the value, or raises it where it is an exception."""

        def body(run: RunContext) -> Any:
            self.ran.append(run.claim.owner)
            if isinstance(value, BaseException):
                raise value
            return value(run) if callable(value) else value

        return deliver(guard or self.guard(), request_by(owner, **given), body, recalled)

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


TERMS = LeaseTerms(lease_seconds=60, renewed=True, longest_seconds=None)


class ManualRenewer(LeaseRenewer):
    """A lease renewer without its threads: renewals happen when the test asks for them."""

    def _spawn(self, work: Callable[[], None]) -> threading.Thread:
        """Leave the work to the test."""
        return threading.Thread(target=work)


class ManualOutcomes(UnrecordedOutcomes):
    """Unrecorded outcomes without their thread: they are tried on when the test asks for it."""

    def _spawn(self) -> threading.Thread:
        """Leave the work to the test."""
        return threading.Thread(target=self.try_on)

    def try_on(self) -> None:
        """Try until each outcome is stored or given up, pausing on the clock of the test."""
        self._work()


def unseen(_: Event) -> None:
    """Observe nothing."""


def start(store: Store, owner: str = "one", lease: float = 60, **given: Any) -> RunContext:
    """Claim and return the run."""
    claim = grant(store, owner, lease_seconds=lease, **given)
    return RunContext(claim, RetryingStore(store=store, observe=unseen))
