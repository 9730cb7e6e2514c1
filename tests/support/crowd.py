"""Many deliveries of one key at one moment, on a clock of their own: every write on the key's record.

Each delivery has a free slot at once and DynamoDB answers at once, so this is the load that workers *offer*; what
a partition takes of it, and the tries that follow where it does not, are left out.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from idempotent_tasks.core.lease import RENEW_AFTER, LeaseTerms
from idempotent_tasks.core.records import Busy, Claim, Finished, Granted, Record
from idempotent_tasks.messaging.deferral import countdown_seconds
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.capacity import KEY, RETENTION, claimed_by, size_of, token_of, write_units
from tests.support.guarding import done, grant, wish

__all__ = ["Crowd", "Write"]

_LAYOUT = DynamoDBStore("any").schema
#: A pool's process as the package names it, of fixed length: the machine's own would move the figures.
_PROCESS = "ip-10-0-12-34/f6aeb598-bba5-46b4-a74f-750b049d580f/4026531836/4026531834/21445@269157^21440@269150"


def _claimed_by(owner: str) -> dict[str, Any]:
    return {**claimed_by(owner), "process": _PROCESS}


class Write(NamedTuple):
    """One write on the record."""

    #: Seconds after the first claim.
    at: float
    #: ``claim`` (granted), ``refused``, ``note``, ``renewal``, ``commit`` or ``replay``.
    kind: str
    units: int


@dataclass
class Crowd:
    """One delivery whose body takes so long, and its duplicates, all delivered at the same moment."""

    duplicates: int
    body_seconds: float
    term: LeaseTerms
    result_bytes: int = 100
    writes: list[Write] = field(default_factory=list)
    _clock: FakeClock = field(default_factory=FakeClock)
    _units: dict[tuple[str, int], int] = field(default_factory=dict)

    def play(self) -> list[Write]:
        """Return every write until the last duplicate has its replay, in order."""
        self._store, self._began_at = MemoryStore(clock=self._clock), self._clock.now()
        claim = grant(self._store, **_claimed_by("1"), lease_seconds=self.term.lease_seconds)
        self._write("claim")
        waiting: list[tuple[float, int, int, str | None]] = [
            (0.0, number, 0, None) for number in range(self.duplicates)
        ]
        for at, step in self._holder(claim):
            self._deliver_until(at, waiting)
            self._move(at)
            self._write(step)
        self._deliver_until(float("inf"), waiting)
        return self.writes

    def _holder(self, claim: Claim) -> Iterator[tuple[float, str]]:
        """Yield when the holder writes next, and what; the write is made when the next is asked for."""
        at, every = 0.0, self.term.lease_seconds * RENEW_AFTER
        while self.term.renewed and (at := at + every) < self.body_seconds:
            yield at, "renewal"
            self._store.renew(claim, self.term.lease_seconds, RETENTION)
        yield self.body_seconds, "commit"
        self._store.commit(claim, done(f'"{"x" * (self.result_bytes - 2)}"'), RETENTION)

    def _deliver_until(self, end: float, waiting: list[tuple[float, int, int, str | None]]) -> None:
        duplicate = wish(**_claimed_by("2"))
        while waiting and waiting[0][0] <= end:
            at, number, deferrals, token = heapq.heappop(waiting)
            self._move(at)
            match self._store.claim(duplicate):
                case Busy(until, holder):
                    self._write("refused")
                    countdown = countdown_seconds(deferrals, until - self._clock.now(), None)
                    if token is not None:
                        self._note(holder, token, countdown)
                    copy = token_of(len(self.writes))
                    heapq.heappush(waiting, (at + countdown, number, deferrals + 1, copy))
                case Finished():
                    self._write("replay")
                case Granted():
                    raise AssertionError("the holder's claim ended under its body")

    def _note(self, holder: Record, token: str, countdown: float) -> None:
        now = self._clock.now()
        self._store.note_deferral(
            KEY, holder.owner or "", token, int((now + countdown) * 1000), holder.past_deferrals(now)
        )
        self._write("note")

    def _move(self, at: float) -> None:
        self._clock.advance(self._began_at + at - self._clock.now())

    def _write(self, kind: str) -> None:
        record = self._store.get(KEY)
        state = (record.status.value, len(record.deferred))
        if state not in self._units:
            noted = {"deferred": {"M": {message: {"N": str(count)} for message, count in record.deferred.items()}}}
            self._units[state] = write_units(size_of({**_LAYOUT.item(record), **noted}))
        self.writes.append(Write(self._clock.now() - self._began_at, kind, self._units[state]))
