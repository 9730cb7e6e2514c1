"""A store of one's own: records in an SQLite file, for workers on one machine."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace

from idempotent_tasks import (
    Record,
    RecordCorruptError,
    RecordExistsError,
    RecordNotFoundError,
    Status,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.core.clock import Clock, SystemClock
from idempotent_tasks.core.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    Committed,
    Granted,
    Lost,
    MessageKept,
    NoRoom,
    NotParked,
    Outcome,
    Parked,
    Released,
    Renewed,
    Superseded,
    Vanished,
    answer_refusal,
    claimable,
    expiration_seconds,
    granted_record,
    held_claim,
    is_first_try,
    kept_message,
    outcome_record,
    parked_record,
    released_record,
    was_committed,
    was_parked,
    was_released,
)
from idempotent_tasks.stores import MOST_FORGOTTEN, MOST_NOTED

# It keeps no steps.
COLUMNS = [field.name for field in fields(Record) if field.name != "steps"]
CREATE = f"CREATE TABLE IF NOT EXISTS records ({', '.join(COLUMNS)}, PRIMARY KEY (key)) WITHOUT ROWID"
WRITE = f"INSERT OR REPLACE INTO records VALUES ({', '.join('?' * len(COLUMNS))})"
#: For how long a call waits for those of other processes, in seconds.
BUSY_SECONDS = 10.0


class Row:
    """The record of one key inside a transaction, which no other process changes meanwhile."""

    def __init__(self, connection: sqlite3.Connection, key: str) -> None:
        self.connection = connection
        self.key = key
        found = connection.execute("SELECT * FROM records WHERE key = ?", (key,)).fetchone()
        self.record = None if found is None else self._read(dict(zip(COLUMNS, found, strict=True)))

    def _read(self, values: dict) -> Record:
        try:
            values["status"] = Status(values["status"])
            values["deferred"] = json.loads(values["deferred"])
            values["dispatched"] = frozenset(json.loads(values["dispatched"]))
            values["parked"] = {name: bytes.fromhex(each) for name, each in json.loads(values["parked"]).items()}
            return Record(**values)
        except (TypeError, ValueError) as error:
            raise RecordCorruptError("the row is no record; delete it", key=self.key) from error

    def write(self, record: Record) -> None:
        """Replace the record."""
        values = {name: getattr(record, name) for name in COLUMNS}
        values["status"] = record.status.value
        values["deferred"] = json.dumps(dict(record.deferred))
        values["dispatched"] = json.dumps(sorted(record.dispatched))
        values["parked"] = json.dumps({name: each.hex() for name, each in record.parked.items()})
        self.connection.execute(WRITE, list(values.values()))

    def held_by(self, owner: str) -> Record | None:
        """Return the record if this owner's claim is neither finished nor released nor taken over."""
        record = self.record
        return record if record and record.owner == owner and record.status is Status.INPROGRESS else None


class SQLiteStore:
    """A store in one SQLite file; arguments: its path, and the clock that all processes of the machine share."""

    max_data_bytes = 1_000_000

    def __init__(self, path: str, *, clock: Clock | None = None) -> None:
        self.path = path
        self.clock = clock or SystemClock()

    @contextmanager
    def _locked(self, key: str) -> Iterator[Row]:
        """Hold the file's write lock for a block: what the block reads and writes is one atomic step."""
        try:
            # A connection for each call: none is shared by threads, or inherited by a forked pool process.
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(CREATE)
                yield Row(connection, key)
                connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise StoreUnavailableError(f"{self.path}: {error}", key=key) from error
        except sqlite3.DatabaseError as error:
            raise StoreMisconfiguredError(f"{self.path} is no database of this store: {error}", key=key) from error

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """See `idempotent_tasks.Store.claim`."""
        with self._locked(request.key) as row:
            now, old = self.clock.now(), row.record
            if old is not None and not claimable(old, request, now):
                return answer_refusal(old, request)
            until = int((now + request.lease_seconds) * 1000)
            record = granted_record(old, request, now, until)
            row.write(record)
            return Granted(Claim.recorded(request, record))

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """See `idempotent_tasks.Store.commit`."""
        with self._locked(claim.key) as row:
            now, old = self.clock.now(), row.record
            if old is None:
                return Vanished()
            if was_committed(old, claim):
                expiration = expiration_seconds(retention_seconds, old.in_progress_expiration or 0, now)
                row.write(replace(old, expiration=max(old.expiration, expiration)))
                return Committed()
            if row.held_by(claim.owner) is None:
                return Superseded(old)
            row.write(outcome_record(old, outcome, retention_seconds, now))
            return Committed()

    def restore(self, record: Record) -> None:
        """See `idempotent_tasks.Store.restore`."""
        with self._locked(record.key) as row:
            if row.record is None:
                row.write(record)
            elif not is_first_try(row.record, record):
                raise RecordExistsError(task=record.task, key=record.key)

    def release(
        self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True, nothing_done: bool = False
    ) -> Released | Lost:
        """See `idempotent_tasks.Store.release`."""
        with self._locked(claim.key) as row:
            held = row.held_by(claim.owner)
            if held is None:
                return Released() if was_released(row.record, claim) else Lost()
            how = {"crashed": crashed, "began": began, "nothing_done": nothing_done}
            row.write(released_record(held, claim, reason, self.clock.now(), **how))
            return Released()

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """See `idempotent_tasks.Store.renew`."""
        with self._locked(claim.key) as row:
            held = held_claim(row.record, claim)
            if row.record is None or held is None:
                return Lost()
            now = self.clock.now()
            until = int((now + lease_seconds) * 1000)
            if until <= held.in_progress_expiration != claim.in_progress_expiration:
                return Renewed(held)
            expiration = expiration_seconds(retention_seconds, until, now)
            row.write(replace(row.record, in_progress_expiration=until, expiration=expiration))
            return Renewed(replace(claim, in_progress_expiration=until))

    def park(self, claim: Claim, reason: str) -> Parked | Lost:
        """See `idempotent_tasks.stores.ParkingStore.park`."""
        with self._locked(claim.key) as row:
            held, record = row.held_by(claim.owner), row.record
            if held is not None:
                record = parked_record(held, claim, reason, self.clock.now())
                row.write(record)
            return Parked(record) if record and was_parked(record, claim) else Lost()

    def keep_message(self, key: str, task_id: str, message: bytes) -> MessageKept | NoRoom | NotParked:
        """See `idempotent_tasks.stores.ParkingStore.keep_message`."""
        with self._locked(key) as row:
            answer = kept_message(row.record, task_id, message)
            if not isinstance(answer, Record):
                return answer
            row.write(answer)
            return MessageKept()

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """See `idempotent_tasks.Store.note_deferral`."""
        with self._locked(key) as row:
            held = row.held_by(owner)
            if held is None or (held.in_progress_expiration or 0) <= int(self.clock.now() * 1000):
                return
            obsolete = set(past[:MOST_FORGOTTEN]) - {token}
            others = {name: at for name, at in held.deferred.items() if name not in obsolete}
            if token in others or len(others) < MOST_NOTED:
                row.write(replace(held, deferred={**others, token: due}))

    def note_dispatch(self, key: str, task_id: str) -> None:
        """See `idempotent_tasks.Store.note_dispatch`."""
        with self._locked(key) as row:
            record = row.record
            if record and record.status is not Status.INPROGRESS and len(record.dispatched) < MOST_NOTED:
                row.write(replace(record, dispatched=record.dispatched | {task_id}))

    def get(self, key: str) -> Record:
        """See `idempotent_tasks.Store.get`."""
        with self._locked(key) as row:
            if row.record is None:
                raise RecordNotFoundError(key=key)
            return row.record

    def forget(self, key: str) -> None:
        """Delete a record; for operators, and for the tests."""
        with self._locked(key) as row:
            row.connection.execute("DELETE FROM records WHERE key = ?", (key,))

    def purge(self) -> None:
        """Delete what has expired; run it now and then."""
        with self._locked("") as row:
            row.connection.execute("DELETE FROM records WHERE expiration < ?", (int(self.clock.now()),))
