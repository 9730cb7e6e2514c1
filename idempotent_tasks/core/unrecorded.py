"""Outcomes that could not be recorded in time: kept in the memory of their process, which goes on trying to store them.

The owner token decides, as in every commit: an outcome still counts if nobody has taken the key meanwhile.
"""

import logging
import math
import threading
from dataclasses import dataclass
from typing import Any, Final

from idempotent_tasks import events
from idempotent_tasks.core.encoding import size_of
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Claim, Committed, Outcome, Superseded, Vanished
from idempotent_tasks.core.retry import RetryingStore, persistently
from idempotent_tasks.errors import StoreError, StoreUnavailableError

__all__ = ["UnrecordedOutcomes"]

logger = logging.getLogger("idempotent_tasks")

#: The most outcomes that a process keeps, and the most bytes of data in them.
MOST_OUTCOMES: Final = 1000
MOST_BYTES: Final = 16 * 1024 * 1024
#: Seconds to which the pauses between two tries grow: shorter than those of a claim, because a delivery that waits for
#: the store too may claim the key first, and runs the body again then.
LONGEST_PAUSE: Final = 0.25
#: Reasons of `events.Unrecorded` when an outcome is given up: it would have expired by now; its process ends.
EXPIRED: Final = "Expired"
AT_EXIT: Final = "ProcessEnds"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Late:
    """An outcome that the store has not taken yet."""

    store: RetryingStore
    claim: Claim
    outcome: Outcome
    #: Of its data, in bytes.
    size: int
    #: When its run gave up, in monotonic seconds of the process's clock.
    since: float

    @property
    def id(self) -> tuple[str, str]:
        """Names its run."""
        return self.claim.key, self.claim.owner

    def emit(self, kind: type[events.Event], **details: Any) -> None:
        """Notify the observers of its delivery."""
        self.store.observe(kind.about(self.claim.request, **details))


class UnrecordedOutcomes:
    """The outcomes of a process that the store did not take in time, and the thread (or greenlet) that tries on.

    An outcome is tried until it is stored, another run holds or has finished the key, its record is gone, it would have
    expired, or the process ends.  The claim is not renewed meanwhile: once it has expired, whoever comes first has the
    key.

    One for each process, `Process.own(UnrecordedOutcomes)`: a forked child has none of its parent's outcomes.
    """

    def __init__(self) -> None:
        self._process = this_process()
        self._lock = self._process.lock()
        #: By run, the next to be tried first.
        self._kept: dict[tuple[str, str], _Late] = {}
        self._thread: threading.Thread | None = None
        #: Set while nothing is kept.
        self._empty = self._process.event()
        self._empty.set()

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._kept)

    def keep(self, store: RetryingStore, claim: Claim, outcome: Outcome, error: StoreError) -> None:
        """Emit `events.Unrecorded`, and try on in the background unless too much is kept already.

        Args:
            store: of the delivery; notifies its observers.
            claim: the claim of the run.
            outcome: what could not be stored; keeping it twice is keeping it once.
            error: why.
        """
        since = self._process.clock.monotonic()
        late = _Late(store=store, claim=claim, outcome=outcome, size=size_of(outcome), since=since)
        kept = self._has_room(late)
        # Before its thread may say that it was stored.
        late.emit(events.Unrecorded, reason=type(error).__name__, kept=kept)
        if not kept:
            return
        try:
            with self._lock:
                self._kept.setdefault(late.id, late)
                self._empty.clear()
                if self._thread is None or not self._thread.is_alive():
                    self._thread = self._spawn()
        except RuntimeError:
            # The machine has no thread left.
            self._give_up(late, type(error).__name__)

    def _spawn(self) -> threading.Thread:
        return self._process.spawn(self._work, "idempotency-unrecorded-outcomes")

    def _has_room(self, late: _Late) -> bool:
        with self._lock:
            others = [each for each in self._kept.values() if each.id != late.id]
        return len(others) < MOST_OUTCOMES and sum(each.size for each in (*others, late)) <= MOST_BYTES

    def finish(self, seconds: float) -> None:
        """Wait until all outcomes are stored, so many seconds at most, and give up the others: the process ends."""
        self._empty.wait(seconds)
        for late in self._in_order():
            self._give_up(late, AT_EXIT)

    def _work(self) -> None:
        while self._has_more():
            persistently(
                self._try_each,
                clock=self._process.clock,
                seconds=math.inf,
                longest_pause=LONGEST_PAUSE,
                retried=StoreError,
            )

    def _has_more(self) -> bool:
        with self._lock:
            if not self._kept:
                self._thread = None
            return bool(self._kept)

    def _try_each(self) -> None:
        """Try each outcome once, until the store is unavailable.

        Raises:
            StoreError: there is more to do, later.
        """
        refusal = None
        for late in self._in_order():
            try:
                self._try(late)
            except StoreUnavailableError:
                # Others have their turn next: it may be this key alone that is throttled, or this store that is away.
                self._move_to_end(late)
                raise
            except StoreError as error:
                refusal = error
        if refusal is not None:
            raise refusal

    def _try(self, late: _Late) -> None:
        claim, retention = late.claim, late.claim.request.retention_seconds
        waited = self._process.clock.monotonic() - late.since
        if waited > retention:
            # Nobody would be given the outcome any more, had it been recorded in time: whoever comes now wants a run.
            return self._give_up(late, EXPIRED)
        try:
            answer = late.store.store.commit(claim, late.outcome, retention)
        except Exception as error:
            if isinstance(error, StoreError):
                raise
            logger.exception("the outcome of %s cannot be stored", claim.key)
            return self._give_up(late, type(error).__name__)
        match answer:
            case Committed():
                late.emit(events.RecordedLate, fence=claim.fence, seconds=round(waited, 3))
            case Vanished():
                # By now it may have been another run's record that was deleted.
                return self._give_up(late, Vanished.__name__)
            case Superseded(record) if record.free:
                return self._give_up(late, events.Released.__name__)
            case Superseded():
                late.emit(events.Superseded, fence=claim.fence)
        return self._forget(late)

    def _give_up(self, late: _Late, reason: str) -> None:
        late.emit(events.Unrecorded, reason=reason, kept=False)
        self._forget(late)

    def _in_order(self) -> list[_Late]:
        with self._lock:
            return list(self._kept.values())

    def _move_to_end(self, late: _Late) -> None:
        with self._lock:
            if self._kept.pop(late.id, None) is not None:
                self._kept[late.id] = late

    def _forget(self, late: _Late) -> None:
        """Keep an outcome no longer; only after its event, because the process may end at once."""
        with self._lock:
            self._kept.pop(late.id, None)
            if not self._kept:
                self._empty.set()
