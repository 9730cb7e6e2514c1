"""Leases: how long a claim lives, the context of the run that holds it, and the renewer of a process's claims.

The renewer runs in the body's own process: renewals end when that process dies, and it notices a lost claim at once.
"""

import heapq
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from idempotent_tasks import events
from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.keys import step_key
from idempotent_tasks.core.policy import Idempotency, seconds
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.receipts import Receipt, ReceiptTransaction, check_following, session_of
from idempotent_tasks.core.records import Claim, Lost, Released, Unanswered
from idempotent_tasks.core.retry import LEASE_PART, RetryingStore, limited
from idempotent_tasks.core.steps import RunEnds, StepCaller
from idempotent_tasks.core.store import Store
from idempotent_tasks.errors import ConfigurationError, StoreError

__all__ = ["DEFAULT_LEASE_SECONDS", "Lease", "LeaseRenewer", "LeaseTerms", "RenewalQueue", "RunContext", "lease_terms"]

logger = logging.getLogger("idempotent_tasks")

#: The lease of a task without a time limit and without a ``lease``.
DEFAULT_LEASE_SECONDS: Final = 60.0
#: A claim is renewed after this part of its lease, so that two renewals may fail.
RENEW_AFTER: Final = 1 / 3
#: A renewal that is late by this part of its lease starts another thread: the present ones cannot keep up.
LATE_AFTER: Final = 1 / 20
#: The most threads that renew.
MOST_THREADS: Final = 16
#: How many renewals of ended runs may stay queued before the queue is swept.
MOST_ENDED: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseTerms:
    """How long one claim lives."""

    #: Seconds from the claim, or from a renewal, to its expiry.
    lease_seconds: float
    #: Whether it is renewed while the body runs.
    renewed: bool
    #: Seconds from the claim after which it is not renewed any more, because the body is dead by then; None for never.
    longest_seconds: float | None


def lease_terms(policy: Idempotency, hard_limit_seconds: float | None) -> LeaseTerms:
    """Return the lease terms under a policy and an enforced hard time limit (seconds; None for none).

    A claim outlives the limit by the policy's grace.  It is renewed only where the policy has a shorter ``lease``, or
    where there is no limit.  It is longer by the policy's ``settle``, because the key of a run that dies with its
    machine is free when its claim ends.
    """
    settle = policy.settle_seconds
    longest = None if hard_limit_seconds is None else hard_limit_seconds + seconds(policy.grace) + settle
    if policy.lease is not None:
        lease = seconds(policy.lease) + settle
    else:
        lease = DEFAULT_LEASE_SECONDS + settle if longest is None else longest
    if longest is None or lease < longest:
        return LeaseTerms(lease_seconds=lease, renewed=True, longest_seconds=longest)
    return LeaseTerms(lease_seconds=longest, renewed=False, longest_seconds=longest)


class RunContext:
    """The run of a body under a claim, with its key, fence and run count; ``self.idempotency`` in the body."""

    #: What the body calls its steps with; None before the body.
    steps: StepCaller | None = None
    #: The step that has a transaction of its own, while that is open: it shares the claim.
    part: "RunContext | None" = None
    #: What has ended the body in a step, so that it may not go on.
    ends: RunEnds | None = None

    def __init__(self, claim: Claim, store: RetryingStore) -> None:
        self.claim = claim
        #: When the key was claimed, in epoch seconds by the store's clock.
        self.began_at = claim.expires_at - claim.request.lease_seconds
        self.handed_over = False
        #: Whether the claim of the key is lost.
        self.claim_lost = False
        #: The run's hold of the lock that its body needs too, or None.
        self.lock: RunContext | None = None
        #: Whether the run itself is committing or releasing its claim, which is then not lost.
        self.ending = False
        #: Whether the body has its outcome: `value`, or the final `failure`.
        self.ended = False
        self.value: Any = None
        self.failure: BaseException | None = None
        #: The writes that are to be carried out with the commit of `value`; None for none.
        self.writes: Sequence[Mapping[str, Any]] | None = None
        #: What the body has raised instead, such as a retry: the run has no outcome.
        self.raised: BaseException | None = None
        #: The continuation that the body has set instead of its message's; known when the body has ended.
        self.continuation: str | None = None
        #: Whether a transaction of the run is under way, in which its claim is not renewed.
        self.writing = False
        #: Whether nobody gets the result, so that one that cannot be stored is no error; known at the body's end.
        self.result_ignored = False
        #: Whether ``recover``, or the receipts' database, is being asked, so that the body has not begun.
        self.asking = False
        #: The transaction of the body's database, while it is open; None without receipts.
        self.transaction: ReceiptTransaction | None = None
        #: How often the body's transaction was rolled back, and the body run again at once.
        self.tries = 0
        #: The signatures that are to be sent once it is committed.
        self.following: list[Any] = []
        #: The row that it is committed with; or that another run has left, and then the run is a replay of that one.
        self.receipt: Receipt | None = None
        self.is_replay = False
        self._nothing_done = False
        self._store = store

    @property
    def key(self) -> str:
        """The record's key, which is the same in every run of the key, and another when the task is renamed."""
        return self.claim.key

    @property
    def downstream_key(self) -> str:
        """The key to pass to downstream systems, so that they recognise a repeated effect: of ``downstream``, or `key`.

        Of ``downstream`` it is a UUID (36 characters) that survives a rename of the task.
        """
        return self.claim.request.downstream_key

    @property
    def fence(self) -> int:
        """The claim's fencing token, a 64-bit integer: a later run of the key, or under its lock, has a larger one.

        A key's first is about the time of its claim in epoch milliseconds, too large for 32 bits: store it in a
        ``BIGINT`` (Django: ``BigIntegerField``).
        """
        return self.claim.fence if self.lock is None else self.lock.fence

    @property
    def lost(self) -> bool:
        """Whether the claim is lost: another delivery may be running the body too."""
        return self.claim_lost or (self.lock is not None and self.lock.lost)

    @property
    def attempt(self) -> int:
        """1 for a first try; each run that crashed since the last clean end adds 1."""
        return self.claim.attempt

    @property
    def run(self) -> int:
        """1 for the first run of the key; each earlier run that began and left no outcome adds 1, however it ended."""
        # A user's own store may count crashes only.
        return max(self.claim.runs, self.claim.attempt)

    @property
    def rerun(self) -> bool:
        """Whether an earlier run of the key began and left no outcome: what it did may have been done already."""
        return self.run > 1

    def nothing_done(self) -> None:
        """State that this run has done nothing that matters, so that it is no reason to call the next one a rerun.

        Call it right before the run ends without an outcome, as by ``self.retry()`` when a provider answers 429.  It
        takes effect with the release of the key and sends no request; a crash before that counts as a run.
        """
        self._nothing_done = True

    @property
    def step(self) -> StepCaller:
        """What runs a part of the body once, and keeps its result: ``self.idempotency.step("charge", f, order)``.

        Raises:
            ConfigurationError: the body has not begun: ``recover`` has no steps.
        """
        if self.steps is None:
            msg = "self.idempotency.step() is there for the body, not for what is asked before it"
            raise ConfigurationError(msg, self.claim.request.task, self.key)
        return self.steps

    def step_key(self, name: str) -> str:
        """Return the key to pass to downstream systems for one step: a UUID (36 characters), the same in every run."""
        return step_key(self.downstream_key, name)

    @property
    def session(self) -> Any:
        """The SQLAlchemy session in the transaction of ``receipts=``, of the body or of its current step.

        Raises:
            ConfigurationError: there is none, because there are no such receipts, or the body or step is over.
        """
        return session_of((self.part or self).transaction, self.claim.request.task, self.key)

    def after_commit(self, signature: Any) -> None:
        """Have a Celery signature sent once the body's transaction is committed, at least once, whoever dies meanwhile.

        It is stored in the receipt, and sent by every run that finds it, under task ids that are the same each time:
        a guarded task runs once for it.  ``ignore_result`` and links of the signature are kept.

        Args:
            signature: as of ``task.s(...)``; its arguments must have a JSON form.

        Raises:
            ConfigurationError: neither the task nor the current step has ``receipts``, or this is no signature.
        """
        part = self.part or self
        check_following(part.transaction, signature, self.claim.request.task, self.key)
        part.following.append(signature)

    def renewed(self, claim: Claim) -> None:
        """Take the claim as it was renewed, also for the current step."""
        for each in (self, self.part):
            if each is not None:
                each.claim = claim

    def claim_has_ended(self) -> bool:
        """Return whether the claim, or that of the lock, is lost or over: another run may have begun.

        It is over as soon as a request of the body, which takes its time to settle, could outlive it.
        """
        # A lock's own request has no such time: what settles is the body's.
        over = self._store.clock.now() + self.claim.request.settle_seconds
        held = [self.claim] if self.lock is None else [self.claim, self.lock.claim]
        return self.lost or any(claim.expires_at <= over for claim in held)

    def lose(self) -> None:
        """Note that the claim is lost, also for the current step."""
        for each in (self, self.part):
            if each is not None:
                each.claim_lost = True

    def begin_again(self) -> None:
        """Forget what a body has left whose transaction was rolled back, because it runs again at once."""
        self.tries += 1
        self.value = self.failure = self.raised = self.continuation = self.writes = None
        self._nothing_done = self.result_ignored = False
        self.following = []

    def hand_over(self, reason: str, *, crashed: bool = False) -> None:
        """Release the key without an outcome: the body failed, or a message that will claim it is to be published."""
        if not self.handed_over:
            self.handed_over = self.ending = True
            self.release(reason, crashed=crashed)
        if self.lock is not None:
            self.lock.hand_over(reason, crashed=crashed)

    def release(self, reason: str, *, crashed: bool = False) -> Released | Lost | Unanswered:
        """Release the key as that of a run that is over, and return the store's answer."""
        # A crash counts, wherever it was: nobody tries for ever what kills its process.
        began, nothing_done = crashed or not self.asking, self._nothing_done and not crashed
        return self._store.release(self.claim, reason, crashed=crashed, began=began, nothing_done=nothing_done)


@dataclass(kw_only=True, eq=False)
class _Renewal:
    """The renewals of one run's claim."""

    run: RunContext
    store: Store
    terms: LeaseTerms
    observe: Callable[[events.Event], None]
    #: When to renew next, in epoch seconds by the store's clock; changed only by the thread that has taken it.
    due: float
    #: Epoch seconds after which the claim is not renewed, or None.
    last: float | None
    #: Whether the run has ended, or has lost its claim.
    done: bool = False
    #: Held during a renewal, for which the end of the run waits.
    renewing: threading.Lock = field(default_factory=lambda: this_process().lock())

    def is_late(self) -> bool:
        """Return whether the renewal is overdue by `LATE_AFTER` of its lease: the running threads cannot keep up."""
        return not self.done and self.store.clock.now() - self.due >= self.terms.lease_seconds * LATE_AFTER

    def renew(self) -> None:
        """Renew the claim, and set when it is due again."""
        # A body may go on after it has handed its key over.
        self.done = self.done or self.run.handed_over
        if self.done:
            return
        clock, claim = self.store.clock, self.run.claim
        if self.run.writing:
            # A renewal and the run's own transaction would get into each other's way.
            self.due = clock.now() + self.terms.lease_seconds * LEASE_PART
            return
        full_lease = self.terms.lease_seconds
        lease = full_lease if self.last is None else min(full_lease, self.last - clock.now())
        if lease <= 0:
            self.done = True
            return
        try:
            # So short that two renewals may fail or hang.
            with limited(clock, full_lease * RENEW_AFTER):
                answer = self.store.renew(claim, lease, claim.request.kept_seconds)
        except Exception as error:
            if not isinstance(error, StoreError):
                # One store's bug must not end the thread that renews every claim of the process.
                logger.exception("the claim of %s cannot be renewed", claim.key)
            self.due = clock.now() + full_lease * LEASE_PART
            return
        if isinstance(answer, Lost):
            self.done = True
            # A claim that the run's own commit or release has ended is not lost.
            if not self.run.ending:
                self.run.lose()
                self.observe(events.Lost.about(claim.request))
            return
        self.run.renewed(answer.claim)
        now = clock.now()
        # The answer may have been slow, or have corrected the store's clock.
        late = lease - (answer.claim.expires_at - now)
        self.due = now + full_lease * RENEW_AFTER - (late if late > lease * LATE_AFTER else 0.0)
        if now < answer.claim.expires_at:
            self.observe(events.Renewed.about(claim.request))


class RenewalQueue:
    """Thread-safe priority queue of the renewals of one store's claims, by the time when they are due."""

    def __init__(self) -> None:
        self._lock = this_process().lock()
        #: Break ties, because renewals cannot be compared.
        self._numbers = count()
        self._heap: list[tuple[float, int, _Renewal]] = []
        self._ended = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._heap)

    def add(self, renewal: _Renewal) -> bool:
        """Queue a renewal until it is due, and return whether it is the first."""
        with self._lock:
            heapq.heappush(self._heap, (renewal.due, next(self._numbers), renewal))
            return self._heap[0][-1] is renewal

    def take(self, now: float) -> _Renewal | None:
        """Remove and return the renewal that has been due for longest; None if none is due."""
        with self._lock:
            while self._heap and self._heap[0][0] <= now:
                *_, renewal = heapq.heappop(self._heap)
                if not renewal.done:
                    return renewal
            return None

    def next(self) -> _Renewal | None:
        """Return the first renewal, due or not; None if none is queued."""
        with self._lock:
            while self._heap and self._heap[0][-1].done:
                heapq.heappop(self._heap)
            return self._heap[0][-1] if self._heap else None

    def sweep(self) -> None:
        """Count a run that has ended, and remove such runs if there are many."""
        with self._lock:
            self._ended += 1
            if self._ended > max(MOST_ENDED, len(self._heap) // 2):
                self._heap = [entry for entry in self._heap if not entry[-1].done]
                heapq.heapify(self._heap)
                self._ended = 0


class LeaseRenewer:
    """Renewer of all claims of a process, in one thread (or greenlet) that the first claim starts.

    It renews one claim at a time, in the order in which they are due.  Where that is too slow, because there are many
    claims or the store is slow, up to `MOST_THREADS` share the work until it is done.  A lease is long enough if these
    threads can renew all claims of the process within two thirds of it (1,000 claims of 30 s take 9 s if a call takes
    100 ms).  A call that hangs delays the other claims until it times out (4 s with `DynamoDBStore`'s own time-outs),
    so a process with many bodies needs leases of more than 6 s.

    One for each process, `Process.own(LeaseRenewer)`: a forked child has none of its parent's threads.
    """

    def __init__(self) -> None:
        #: By store's clock.  Copied on write: another thread may add one while this one iterates, even within
        #: ``list(...)``, where that collects garbage.
        self._queues: dict[Clock, RenewalQueue] = {}
        self._changed = this_process().event()
        self._helpers: list[threading.Thread] = []
        self._started = False
        self._starting = this_process().lock()

    @contextmanager
    def renewing(
        self, run: RunContext, store: Store, terms: LeaseTerms, observe: Callable[[events.Event], None]
    ) -> Iterator[None]:
        """Renew a run's claim until the block ends, and wait for a renewal that is under way then."""
        renewal = _Renewal(
            run=run,
            store=store,
            terms=terms,
            observe=observe,
            # From the claim, not from its answer, which may have been slow.
            due=run.began_at + terms.lease_seconds * RENEW_AFTER,
            last=None if terms.longest_seconds is None else run.began_at + terms.longest_seconds,
        )
        queue = self._add(renewal)
        try:
            yield
        finally:
            renewal.done = True
            # A renewal that arrives after the release would hold the key again.
            with renewal.renewing:
                pass
            queue.sweep()

    def renew_due(self) -> float | None:
        """Renew every claim that is due, and return the seconds until the next is; None if there is none."""
        while self._renew_next():
            self._start_helper()
        # A claim that a helper is renewing has no due time yet; the helper sets `_changed` when it has.
        queued = [renewal for queue in self._queues.values() if (renewal := queue.next()) is not None]
        return min((max(each.due - each.store.clock.now(), 0.0) for each in queued), default=None)

    def _renew_next(self) -> bool:
        """Renew one claim that is due, and return whether there was one."""
        for clock, queue in self._queues.items():
            renewal = queue.take(clock.now())
            if renewal is not None:
                with renewal.renewing:
                    renewal.renew()
                if not renewal.done:
                    queue.add(renewal)
                return True
        return False

    def _add(self, renewal: _Renewal) -> RenewalQueue:
        clock = renewal.store.clock
        with self._starting:
            if not self._started:
                self._spawn(self._work)
                self._started = True
            if clock not in self._queues:
                self._queues = {**self._queues, clock: RenewalQueue()}
            queue = self._queues[clock]
            is_next = queue.add(renewal)
        if is_next:
            self._changed.set()
        return queue

    def _start_helper(self) -> None:
        """Start another thread if a renewal is late."""
        self._helpers = [helper for helper in self._helpers if helper.is_alive()]
        due = [queue.next() for queue in self._queues.values()]
        late = any(renewal is not None and renewal.is_late() for renewal in due)
        if late and len(self._helpers) < MOST_THREADS - 1:
            # The renewer must survive on a machine that has no thread left.
            with suppress(RuntimeError):
                self._helpers.append(self._spawn(self._help))

    def _spawn(self, work: Callable[[], None]) -> threading.Thread:
        return this_process().spawn(work, "idempotency-lease-renewer")

    def _help(self) -> None:
        while self._renew_next():
            pass
        self._changed.set()

    def _work(self) -> None:
        while True:
            self._changed.clear()
            self._changed.wait(self.renew_due())


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The lease of one delivery's claim: its terms and its renewal."""

    terms: LeaseTerms
    store: Store
    observe: Callable[[events.Event], None]

    def renewing(self, run: RunContext) -> AbstractContextManager[None]:
        """Renew the run's claim until the block ends, if its terms need that."""
        if not self.terms.renewed:
            return nullcontext()
        return this_process().own(LeaseRenewer).renewing(run, self.store, self.terms, self.observe)
