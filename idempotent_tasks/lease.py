"""How long a claim lives, and the keeper that renews the claims of this process while their bodies run.

The keeper lives in the process that runs the body: it dies with it, and knows of a loss at once.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from idempotent_tasks import events
from idempotent_tasks.active_run import ActiveRun
from idempotent_tasks.clock import Clock
from idempotent_tasks.errors import StoreError
from idempotent_tasks.policy import Idempotency, seconds
from idempotent_tasks.records import Lost
from idempotent_tasks.renewals import Renewals
from idempotent_tasks.retries import LEASE_PART, limited
from idempotent_tasks.stores import Store

__all__ = ["DEFAULT_LEASE_SECONDS", "Keeper", "Term", "term_of"]

logger = logging.getLogger("idempotent_tasks")

#: How long a claim lives between renewals where nothing limits the body's time and no ``lease`` was asked for.
DEFAULT_LEASE_SECONDS: Final = 60.0
#: A claim is renewed when this part of its lease has passed, so that two renewals may fail.
RENEW_AFTER: Final = 1 / 3
#: A renewal that is late by this part of its lease shows that one thread cannot keep up: it calls for another.
LATE_AFTER: Final = 1 / 20
#: How many threads renew at most.
MOST_THREADS: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """How long one claim lives."""

    #: Seconds from the claim, or from a renewal, to its expiry.
    lease_seconds: float
    #: Whether it is renewed while the body runs.
    renewed: bool
    #: Seconds from the claim after which it is not prolonged any more, because the body is dead by then.
    longest_seconds: float | None


def term_of(policy: Idempotency, hard_limit_seconds: float | None) -> Term:
    """Return the term of a claim under a policy and an enforced hard time limit, in seconds.

    With an enforced limit the claim simply outlives it by the policy's grace.  A ``lease``, or a body whose time
    nothing limits, needs renewal.
    """
    longest = None if hard_limit_seconds is None else hard_limit_seconds + seconds(policy.grace)
    if policy.lease is None and longest is not None:
        return Term(lease_seconds=longest, renewed=False, longest_seconds=longest)
    lease = DEFAULT_LEASE_SECONDS if policy.lease is None else seconds(policy.lease)
    if longest is not None and longest <= lease:
        return Term(lease_seconds=longest, renewed=False, longest_seconds=longest)
    return Term(lease_seconds=lease, renewed=True, longest_seconds=longest)


@dataclass(kw_only=True, eq=False)
class _Kept:
    run: ActiveRun
    store: Store
    term: Term
    observe: Callable[[events.Event], None]
    #: Epoch seconds by the store's clock.
    due: float
    #: Epoch seconds after which the claim is not prolonged, or None.
    last: float | None
    done: bool = False
    #: Held during a renewal, which the end of the body waits for.
    renewing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def urgency(self) -> float:
        """The claim that expires first comes first."""
        return self.run.claim.in_progress_expiration

    def late_by(self, part: float) -> bool:
        """Return whether a renewal is due, and has been for more than this part of the lease."""
        return not self.done and self.store.clock.now() - self.due >= self.term.lease_seconds * part


class Keeper:
    """Renews claims from one thread (or greenlet) a process, started when the first claim needs it.

    It renews one claim at a time, of those that are due the one that expires first.  Where that is too slow, because
    there are many claims or the store is, up to `MOST_THREADS` share the work until it is done.  The limit: all claims
    of a process must be renewed by so many threads within two thirds of a lease (1,000 claims of 30 s take 9 s if a
    call takes 100 ms); and a call that hangs holds up the claims of its process for its own time-outs (4 s with
    `DynamoDBStore`'s own), so a process with many bodies wants leases of more than 6 s.
    """

    def __init__(self) -> None:
        self._pid = 0
        #: By the clock that says what is due, one for each store.  Replaced, never changed: while one thread looks
        #: through it, another may add its own, even within ``list(...)``, where that collects garbage.
        self._renewals: dict[Clock, Renewals[_Kept]] = {}
        self._changed = threading.Event()
        self._aides: list[threading.Thread] = []
        #: One lock a process: a child that is forked while a thread of its parent holds the lock never gets it.
        self._starting: dict[int, threading.Lock] = {}

    @contextmanager
    def keep(self, run: ActiveRun, store: Store, term: Term, observe: Callable[[events.Event], None]) -> Iterator[None]:
        """Renew the run's claim until the block ends; then no renewal is under way any more."""
        kept = _Kept(
            run=run,
            store=store,
            term=term,
            observe=observe,
            # From the claim on, not from its answer, which may have been long on its way.
            due=run.began_at + term.lease_seconds * RENEW_AFTER,
            last=None if term.longest_seconds is None else run.began_at + term.longest_seconds,
        )
        self._add(kept)
        try:
            yield
        finally:
            kept.done = True
            # A renewal that lands after the release would hold the key again.
            with kept.renewing:
                pass
            renewals = self._renewals.get(store.clock)
            # None in a child that was forked within the block and has kept a claim since: it forgot its parent's.
            if renewals is not None:
                renewals.sweep()

    def renew_due(self) -> float | None:
        """Renew every claim that is due, and return the seconds until the next one, None where there is none."""
        while self._renew_most_urgent():
            self._call_aide()
        # What an aide renews at this moment has no next time yet; the aide says when it has.
        due = [(clock, renewals.next_due()) for clock, renewals in self._renewals.items()]
        return min((max(at - clock.now(), 0.0) for clock, at in due if at is not None), default=None)

    def _renew_most_urgent(self) -> bool:
        """Renew the due claim that expires first, and return whether there was one."""
        for clock, renewals in self._renewals.items():
            kept = renewals.take(clock.now())
            if kept is not None:
                with kept.renewing:
                    self._renew(kept)
                if not kept.done:
                    renewals.add(kept)
                return True
        return False

    def _renew(self, kept: _Kept) -> None:
        if kept.done:
            return
        clock, term, claim = kept.store.clock, kept.term, kept.run.claim
        lease = term.lease_seconds if kept.last is None else min(term.lease_seconds, kept.last - clock.now())
        if lease <= 0:
            kept.done = True
            return
        try:
            # Two renewals may fail, whether they are refused or hang.
            with limited(clock, term.lease_seconds * RENEW_AFTER):
                answer = kept.store.renew(claim, lease, claim.request.retention_seconds)
        except Exception as error:
            if not isinstance(error, StoreError):
                # This thread keeps the claims of the whole process: one store's bug must not end it.
                logger.exception("the claim of %s cannot be renewed", claim.key)
            kept.due = clock.now() + term.lease_seconds * LEASE_PART
            return
        if isinstance(answer, Lost):
            kept.done = True
            # What the run's own commit or release has ended is not lost, and of both the run knows more than we.
            if not kept.run.ending:
                kept.run.lost = True
                kept.observe(events.Lost.about(claim.request))
            return
        kept.run.claim = answer.claim
        now = clock.now()
        # An answer may have been long on its way, or show that it is later than was thought.
        late = lease - (answer.claim.expires_at - now)
        kept.due = now + term.lease_seconds * RENEW_AFTER - (late if late > lease * LATE_AFTER else 0.0)
        if now < answer.claim.expires_at:
            kept.observe(events.Renewed.about(claim.request))

    def _add(self, kept: _Kept) -> None:
        pid = os.getpid()
        with self._starting.setdefault(pid, threading.Lock()):
            if self._pid != pid:
                self._start(pid)
            clock = kept.store.clock
            if clock not in self._renewals:
                self._renewals = {**self._renewals, clock: Renewals()}
            is_next = self._renewals[clock].add(kept)
        if is_next:
            self._changed.set()

    def _start(self, pid: int) -> None:
        """Forget what a parent process had, whose threads do not exist in a forked child, and start our own."""
        self._renewals, self._changed, self._aides = {}, threading.Event(), []
        self._spawn(self._work)
        self._pid = pid

    def _call_aide(self) -> None:
        """Let another thread help with what is late, as long as something is."""
        self._aides = [aide for aide in self._aides if aide.is_alive()]
        oldest = [renewals.oldest_due() for renewals in self._renewals.values()]
        late = any(kept is not None and kept.late_by(LATE_AFTER) for kept in oldest)
        if late and len(self._aides) < MOST_THREADS - 1:
            # A machine that has no thread left must not cost the keeper its own.
            with suppress(RuntimeError):
                self._aides.append(self._spawn(self._aid))

    def _spawn(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name="idempotency-keeper", daemon=True)
        thread.start()
        return thread

    def _aid(self) -> None:
        while self._renew_most_urgent():
            pass
        self._changed.set()

    def _work(self) -> None:
        while True:
            self._changed.clear()
            self._changed.wait(self.renew_due())
