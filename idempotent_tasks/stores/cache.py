"""A `Store` in front of another that tells outcomes from this process's memory, for a while."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from cachetools import LRUCache

from idempotent_tasks.clock import Clock
from idempotent_tasks.committed import committed_record
from idempotent_tasks.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    Committed,
    Finished,
    Lost,
    Outcome,
    Record,
    Released,
    Renewed,
    answer_refusal,
)
from idempotent_tasks.stores import Store

__all__ = ["CachedStore", "OutcomeCache"]

#: What an entry takes beside its texts, in bytes: the record, and cachetools' links to it.
ENTRY_BYTES: Final = 500
#: One for all records, none of which changes it.
_NOBODY: Final[dict[str, int]] = {}


class OutcomeCache:
    """Outcomes that this process has seen, those used last; for all threads, and for none of its forked children.

    Args:
        clock: the store's.
        most: how many outcomes are kept.
        most_bytes: how much memory they take, in bytes; one that is larger by itself is not kept.
    """

    def __init__(self, clock: Clock, *, most: int, most_bytes: int) -> None:
        self._clock = clock
        self._most = most
        self._most_bytes = most_bytes
        #: The process whose memory this is.  One lock a process: a child that is forked while a thread of its parent
        #: holds the lock never gets it.
        self._mine = (0, threading.Lock(), self._empty())

    def __len__(self) -> int:
        with self._locked() as entries:
            return len(entries)

    def recall(self, request: ClaimRequest) -> ClaimAnswer | None:
        """Return the answer to a claim whose key is known to have an outcome, None where it must be asked for."""
        with self._locked() as entries:
            record = entries.get(request.key)
        if record is None or record.expiration <= self._clock.now():
            return None
        return answer_refusal(record, request)

    def remember(self, record: Record, max_age: float) -> None:
        """Keep an outcome until it expires, and for ``max_age`` seconds at most.

        One whose body has changed what follows it is left out: whether that was sent already, no memory knows.
        """
        if record.continuation is not None:
            return
        # What replays nothing is left out; names that all records of a task share are kept once.
        kept = replace(
            record,
            owner=None,
            worker=None,
            process=None,
            deferred=_NOBODY,
            fence=0,
            claimed_at=None,
            in_progress_expiration=None,
            task=sys.intern(record.task) if record.task else None,
            codec=sys.intern(record.codec) if record.codec else None,
            expiration=min(record.expiration, int(self._clock.now() + max_age)),
        )
        if _size(kept) > self._most_bytes:
            return
        with self._locked() as entries:
            entries[record.key] = kept
            while len(entries) > self._most:
                entries.popitem()

    @contextmanager
    def _locked(self) -> "Iterator[LRUCache[str, Record]]":
        pid, lock, entries = self._mine
        if pid != os.getpid():
            # What another process was doing with its entries when this one was forked is not known here.
            lock, entries = threading.Lock(), self._empty()
            self._mine = (os.getpid(), lock, entries)
        with lock:
            yield entries

    def _empty(self) -> "LRUCache[str, Record]":
        return LRUCache(self._most_bytes, _size)


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedStore:
    """Tells an outcome that this process has seen without asking; passes everything else on.

    A record that somebody deletes from the store is told until it is ``max_age`` seconds old here.
    """

    inner: Store
    cache: OutcomeCache
    #: Seconds.
    max_age: float

    @property
    def clock(self) -> Clock:
        """The inner store's clock."""
        return self.inner.clock

    @property
    def max_data_bytes(self) -> int:
        """The inner store's limit, in bytes."""
        return self.inner.max_data_bytes

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """See `idempotent_tasks.stores.Store.claim`; no request where the outcome is known here."""
        answer = self.cache.recall(request)
        if answer is None:
            answer = self.inner.claim(request)
            if isinstance(answer, Finished):
                self.cache.remember(answer.record, self.max_age)
        return answer

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """See `idempotent_tasks.stores.Store.commit`."""
        now = self.clock.now()
        answer = self.inner.commit(claim, outcome, retention_seconds)
        if isinstance(answer, Committed):
            self.cache.remember(committed_record(claim, outcome, retention_seconds, now), self.max_age)
        return answer

    def restore(self, record: Record) -> None:
        """See `idempotent_tasks.stores.Store.restore`."""
        self.inner.restore(record)

    def release(self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True) -> Released | Lost:
        """See `idempotent_tasks.stores.Store.release`."""
        return self.inner.release(claim, reason, crashed=crashed, began=began)

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """See `idempotent_tasks.stores.Store.renew`."""
        return self.inner.renew(claim, lease_seconds, retention_seconds)

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """See `idempotent_tasks.stores.Store.note_deferral`."""
        self.inner.note_deferral(key, owner, token, due, past)

    def note_dispatch(self, key: str, task_id: str) -> None:
        """See `idempotent_tasks.stores.Store.note_dispatch`."""
        self.inner.note_dispatch(key, task_id)

    def get(self, key: str) -> Record:
        """See `idempotent_tasks.stores.Store.get`."""
        return self.inner.get(key)


def _size(record: Record) -> int:
    texts = (record.key, record.data, record.validation, record.task_id, record.error)
    return ENTRY_BYTES + sum(sys.getsizeof(text) for text in texts if text is not None)
