"""Records in this process's memory: for tests, eager mode and single-process workers."""

import threading
from collections.abc import Sequence
from dataclasses import replace

from idempotent_tasks.core.clock import Clock, SystemClock
from idempotent_tasks.core.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    Committed,
    Granted,
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
    Status,
    Step,
    Superseded,
    Vanished,
    answer_refusal,
    claimable,
    expiration_seconds,
    granted_record,
    is_first_try,
    kept_message,
    outcome_record,
    parked_record,
    released_record,
    step_item_key,
    was_committed,
    was_parked,
    was_released,
)
from idempotent_tasks.core.store import CLOCK_TOLERANCE_SECONDS, MOST_FORGOTTEN, MOST_NOTED
from idempotent_tasks.errors import RecordExistsError, RecordNotFoundError

__all__ = ["MemoryStore"]


class MemoryStore:
    """A `idempotent_tasks.stores.Store` that keeps its records in a dictionary.

    Only the threads of one process share it.  A prefork worker refuses to start with it, because each of its pool
    processes would have records of its own.

    Args:
        clock: the source of time; the machine's clock by default.
        max_data_bytes: the largest encoded result that a commit takes, in bytes.
    """

    def __init__(self, *, clock: Clock | None = None, max_data_bytes: int = 380_000) -> None:
        self.clock: Clock = clock or SystemClock()
        self.max_data_bytes = max_data_bytes
        self._records: dict[str, Record] = {}
        #: By key of the item, the steps that do not lie in their records.
        self._steps: dict[str, Step] = {}
        self._lock = threading.Lock()

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """See `idempotent_tasks.stores.Store.claim`."""
        with self._lock:
            now = self.clock.now()
            old = self._records.get(request.key)
            if old is not None and not claimable(old, request, now):
                return answer_refusal(old, request)
            until = int((now + request.lease_seconds) * 1000)
            record = self._records[request.key] = granted_record(old, request, now, until)
            return Granted(Claim.recorded(request, record))

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """See `idempotent_tasks.stores.Store.commit`."""
        with self._lock:
            old = self._records.get(claim.key)
            if old is None:
                return Vanished()
            now = self.clock.now()
            if was_committed(old, claim):
                expiration = expiration_seconds(retention_seconds, old.in_progress_expiration or 0, now)
                if now - (old.completed_at or 0) / 1000 > CLOCK_TOLERANCE_SECONDS and expiration > old.expiration:
                    self._records[claim.key] = replace(old, expiration=expiration)
                return Committed()
            if self._held(claim) is None:
                return Superseded(old)
            self._records[claim.key] = outcome_record(old, outcome, retention_seconds, now)
            return Committed()

    def restore(self, record: Record) -> None:
        """See `idempotent_tasks.stores.Store.restore`."""
        with self._lock:
            old = self._records.get(record.key)
            if old is None:
                self._records[record.key] = record
            elif not is_first_try(old, record):
                raise RecordExistsError(task=record.task, key=record.key)

    def release(
        self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True, nothing_done: bool = False
    ) -> Released | Lost:
        """See `idempotent_tasks.stores.Store.release`."""
        with self._lock:
            held = self._held(claim)
            if held is None:
                return Released() if was_released(self._records.get(claim.key), claim) else Lost()
            how = {"crashed": crashed, "began": began, "nothing_done": nothing_done}
            self._records[claim.key] = released_record(held, claim, reason, self.clock.now(), **how)
            return Released()

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """See `idempotent_tasks.stores.Store.renew`."""
        with self._lock:
            held = self._held(claim)
            if held is None or not held.in_progress_expiration:
                return Lost()
            now = self.clock.now()
            until = int((now + lease_seconds) * 1000)
            if until <= held.in_progress_expiration != claim.in_progress_expiration:
                return Renewed(replace(claim, in_progress_expiration=held.in_progress_expiration))
            expiration = expiration_seconds(retention_seconds, until, now)
            self._records[claim.key] = replace(held, in_progress_expiration=until, expiration=expiration)
            return Renewed(replace(claim, in_progress_expiration=until))

    def park(self, claim: Claim, reason: str) -> Parked | Lost:
        """See `idempotent_tasks.stores.ParkingStore.park`."""
        with self._lock:
            held, old = self._held(claim), self._records.get(claim.key)
            if held is not None:
                old = self._records[claim.key] = parked_record(held, claim, reason, self.clock.now())
            return Parked(old) if old is not None and was_parked(old, claim) else Lost()

    def keep_message(self, key: str, task_id: str, message: bytes) -> MessageKept | NoRoom | NotParked:
        """See `idempotent_tasks.stores.ParkingStore.keep_message`."""
        with self._lock:
            answer = kept_message(self._records.get(key), task_id, message)
            if isinstance(answer, Record):
                self._records[key] = answer
                return MessageKept()
            return answer

    def keep_step(
        self,
        claim: Claim,
        name: str,
        step: Step,
        kept: KeptSteps,  # noqa: ARG002 - the record says so itself
    ) -> KeptSteps | Lost:
        """See `idempotent_tasks.stores.SteppingStore.keep_step`."""
        with self._lock:
            held = self._held(claim)
            if held is None:
                return Lost()
            if name not in held.steps:
                if not held.steps.has_room(name, step):
                    self._steps[step_item_key(claim, name)] = step
                held = self._records[claim.key] = replace(held, steps=held.steps.including(name, step))
            return held.steps

    def kept_step(self, claim: Claim, name: str) -> Step:
        """See `idempotent_tasks.stores.SteppingStore.kept_step`."""
        with self._lock:
            try:
                return self._steps[step_item_key(claim, name)]
            except KeyError:
                raise RecordNotFoundError(task=claim.request.task, key=claim.key) from None

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """See `idempotent_tasks.stores.Store.note_deferral`."""
        with self._lock:
            record = self._records.get(key)
            if record is None or record.owner != owner or record.status is not Status.INPROGRESS:
                return
            if (record.in_progress_expiration or 0) <= int(self.clock.now() * 1000):
                return
            forgotten = {each for each in past[:MOST_FORGOTTEN] if each != token}
            if token in record.deferred or len(record.deferred) < MOST_NOTED + len(forgotten):
                kept = {name: each for name, each in record.deferred.items() if name not in forgotten}
                self._records[key] = replace(record, deferred={**kept, token: due})

    def note_dispatch(self, key: str, task_id: str) -> None:
        """See `idempotent_tasks.stores.Store.note_dispatch`."""
        with self._lock:
            record = self._records.get(key)
            if record is not None and record.status is not Status.INPROGRESS and len(record.dispatched) < MOST_NOTED:
                self._records[key] = replace(record, dispatched=record.dispatched | {task_id})

    def get(self, key: str) -> Record:
        """See `idempotent_tasks.stores.Store.get`."""
        with self._lock:
            try:
                return self._records[key]
            except KeyError:
                raise RecordNotFoundError(key=key) from None

    def forget(self, key: str) -> None:
        """Delete the record of a key, whoever holds it; do nothing where there is none."""
        with self._lock:
            self._records.pop(key, None)

    def records(self) -> list[Record]:
        """Return a snapshot of every record, in the order of their first claims."""
        with self._lock:
            return list(self._records.values())

    def _held(self, claim: Claim) -> Record | None:
        record = self._records.get(claim.key)
        if record is None or record.owner != claim.owner or record.status is not Status.INPROGRESS:
            return None
        return record
