"""A cache of outcomes in this process's memory, and the store that answers claims from it."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakKeyDictionary

from cachetools import LRUCache

from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import (
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
    committed_record,
)
from idempotent_tasks.core.store import Store

__all__ = ["CachedStore", "OutcomeCache"]

#: The memory of an entry beside its texts, in bytes: the record, and cachetools' links to it.
ENTRY_BYTES: Final = 500
#: Shared by all cached records, none of which changes it.
_NO_DEFERRALS: Final[dict[str, int]] = {}
_NO_MESSAGES: Final[dict[str, bytes]] = {}


class OutcomeCache:
    """The outcomes that this process has used last (LRU); shared by its threads, empty in a forked child.

    Args:
        clock: the store's.
        most: how many outcomes are kept.
        most_bytes: how much memory they take together, in bytes; an outcome that is larger by itself is not kept.
    """

    def __init__(self, clock: Clock, *, most: int, most_bytes: int) -> None:
        self._clock = clock
        self._most = most
        self._most_bytes = most_bytes

    def __len__(self) -> int:
        with self._locked() as entries:
            return len(entries)

    def recall(self, request: ClaimRequest) -> ClaimAnswer | None:
        """Return the answer to a claim whose outcome is cached; None where the store has to be asked."""
        with self._locked() as entries:
            record = entries.get(request.key)
        if record is None or record.expiration <= self._clock.now():
            return None
        return answer_refusal(record, request)

    def remember(self, record: Record, max_age: float) -> None:
        """Keep an outcome until it expires, for ``max_age`` seconds at most.

        Ignores a record with a continuation (links, chain) set by its body: only the store knows if that was sent.
        """
        if record.continuation is not None:
            return
        # What no replay needs is left out; names that all records of a task share are kept once.
        kept = replace(
            record,
            owner=None,
            worker=None,
            process=None,
            deferred=_NO_DEFERRALS,
            parked=_NO_MESSAGES,
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
        # A forked child has others: it would inherit the lock locked, or the entries half changed, where a thread of
        # its parent is at work.
        caches = this_process().own(_Caches)
        mine = caches.get(self) or caches.setdefault(self, (threading.Lock(), LRUCache(self._most_bytes, _size)))
        with mine[0]:
            yield mine[1]


class _Caches(WeakKeyDictionary[OutcomeCache, "tuple[threading.Lock, LRUCache[str, Record]]"]):
    """The lock and the entries of each cache of a process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedStore:
    """Serves known outcomes from memory; delegates everything else.

    A record that is deleted from the store is still served until it has been in the cache for ``max_age`` seconds.
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
        """See `idempotent_tasks.stores.Store.claim`; sends no request if the outcome is cached."""
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

    def release(self, claim: Claim, reason: str, **how: bool) -> Released | Lost:
        """See `idempotent_tasks.stores.Store.release`."""
        return self.inner.release(claim, reason, **how)

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
