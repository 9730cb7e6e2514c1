"""The calls of the store as its callers see them: when each was made, and what it returned, if it did."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    KeptSteps,
    Lost,
    MessageKept,
    NoRoom,
    NotParked,
    Outcome,
    Parked,
    Record,
    Released,
    Renewed,
    Step,
    WritesRefused,
)
from idempotent_tasks.errors import StoreError
from idempotent_tasks.stores.dynamodb import DynamoDBStore

__all__ = ["Call", "RecordedStore"]


@dataclass(slots=True)
class Call:
    """One call that may change who holds a key, or its outcome."""

    method: str
    key: str
    owner: str
    #: When it was made, in epoch seconds of the simulation.
    called_at: float
    #: Of a claim or renewal: seconds until the claim expires; of a release: until what its run has done has settled.
    lease_seconds: float = 0.0
    #: Of a claim: the task id; of a commit: the encoded result; of a release: the claim's fence, 0 if unknown.
    task_id: str = ""
    data: Any = None
    fence: int = 0
    #: When it returned or failed; None if its process ended, or was interrupted.
    ended_at: float | None = None
    #: What it returned; None if it failed: it may have been carried out, or may be later.
    answer: Any = None


class RecordedStore:
    """A store that notes its calls.

    Args:
        store: what answers them.
        calls: to which they are added.
        now: returns the simulation's time, in epoch seconds.
    """

    def __init__(self, store: DynamoDBStore, calls: list[Call], now: Callable[[], float]) -> None:
        self.store = store
        self._calls = calls
        self._now = now

    @property
    def clock(self) -> Clock:
        """The store's clock."""
        return self.store.clock

    @property
    def max_data_bytes(self) -> int:
        """The store's limit."""
        return self.store.max_data_bytes

    def _noted(self, call: Call, carry_out: Callable[[], Any]) -> Any:
        self._calls.append(call)
        try:
            call.answer = carry_out()
        except StoreError:
            call.ended_at = self._now()
            raise
        call.ended_at = self._now()
        return call.answer

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """See `Store.claim`."""
        call = Call("claim", request.key, request.owner, self._now(), request.lease_seconds, request.task_id)
        answer: ClaimAnswer = self._noted(call, lambda: self.store.claim(request))
        return answer

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """See `Store.commit`."""
        call = Call("commit", claim.key, claim.owner, self._now(), data=outcome.data)
        answer: CommitAnswer = self._noted(call, lambda: self.store.commit(claim, outcome, retention_seconds))
        return answer

    def check_writes(self, key: str, writes: Sequence[Mapping[str, Any]]) -> None:
        """See `AtomicStore.check_writes`; it asks nobody."""
        self.store.check_writes(key, writes)

    def commit_with(
        self, claim: Claim, outcome: Outcome, retention_seconds: float, writes: Sequence[Mapping[str, Any]]
    ) -> CommitAnswer | WritesRefused:
        """See `AtomicStore.commit_with`."""
        call = Call("commit_with", claim.key, claim.owner, self._now(), data=outcome.data)
        answer: CommitAnswer | WritesRefused = self._noted(
            call, lambda: self.store.commit_with(claim, outcome, retention_seconds, writes)
        )
        return answer

    def write(self, writes: Sequence[Mapping[str, Any]], token: str) -> WritesRefused | None:
        """See `AtomicStore.write`; it has no key."""
        return self.store.write(writes, token)

    def restore(self, record: Record) -> None:
        """See `Store.restore`."""
        self._noted(
            Call("restore", record.key, record.owner or "", self._now(), data=record.data),
            lambda: self.store.restore(record),
        )

    def release(
        self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True, nothing_done: bool = False
    ) -> Released | Lost:
        """See `Store.release`."""
        settles = claim.request.settle_seconds if began and not nothing_done and claim.request.is_for_run else 0.0
        call = Call("release", claim.key, claim.owner, self._now(), settles, fence=claim.fence)
        answer: Released | Lost = self._noted(
            call,
            lambda: self.store.release(claim, reason, crashed=crashed, began=began, nothing_done=nothing_done),
        )
        return answer

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """See `Store.renew`."""
        call = Call("renew", claim.key, claim.owner, self._now(), lease_seconds)
        answer: Renewed | Lost = self._noted(call, lambda: self.store.renew(claim, lease_seconds, retention_seconds))
        return answer

    def park(self, claim: Claim, reason: str) -> Parked | Lost:
        """See `ParkingStore.park`."""
        call = Call("park", claim.key, claim.owner, self._now())
        answer: Parked | Lost = self._noted(call, lambda: self.store.park(claim, reason))
        return answer

    def keep_message(self, key: str, task_id: str, message: bytes) -> MessageKept | NoRoom | NotParked:
        """See `ParkingStore.keep_message`; it changes neither holder nor outcome."""
        return self.store.keep_message(key, task_id, message)

    def keep_step(self, claim: Claim, name: str, step: Step, kept: KeptSteps) -> KeptSteps | Lost:
        """See `idempotent_tasks.stores.SteppingStore.keep_step`."""
        call = Call("keep_step", claim.key, claim.owner, self._now(), data=name)
        answer: KeptSteps | Lost = self._noted(call, lambda: self.store.keep_step(claim, name, step, kept))
        return answer

    def kept_step(self, claim: Claim, name: str) -> Step:
        """See `idempotent_tasks.stores.SteppingStore.kept_step`."""
        return self.store.kept_step(claim, name)

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """See `Store.note_deferral`; it changes neither holder nor outcome."""
        self.store.note_deferral(key, owner, token, due, past)

    def note_dispatch(self, key: str, task_id: str) -> None:
        """See `Store.note_dispatch`; it changes neither holder nor outcome."""
        self.store.note_dispatch(key, task_id)

    def get(self, key: str) -> Record:
        """See `Store.get`."""
        return self.store.get(key)
