"""Format a record as columns for people, or as a dict for JSON; no I/O."""

import zlib
from datetime import UTC, datetime
from typing import Any, Final

from idempotent_tasks.core.encoding import as_bytes, text_of
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Record, Status, is_reservation

__all__ = ["STATES", "as_dict", "columns", "counted", "is_live", "needs_decision", "state", "written_at"]

#: The states of a record, with what each means: the same word in each command's output, filters and documentation.
STATES: Final = {
    "reserved": "its message is published under `at_publish`, and no delivery has claimed the key yet",
    "running": "a delivery has claimed the key: its body runs, or its process died and nobody has noticed yet",
    "parked": "an earlier run left no outcome, and a person is to say what came of it (`resolve`): no body runs",
    "settling": "a run has ended without an outcome, and what it has requested elsewhere may still be on its way "
    "(`settle`): nobody gets the key for now",
    "free": "the key was released, or its claim ran out: the next delivery runs the body",
    "completed": "the body returned: its result is replayed until the record expires",
    "failed": "the body raised a final failure (`store_failures`): it is replayed until the record expires",
    "expired": "the record is past its time, whatever it was before: it counts as absent, the next delivery runs the "
    "body, and TTL deletes it",
}


def state(record: Record, now: float) -> str:
    """Return one of `STATES`.

    Args:
        record: the record.
        now: epoch seconds by the store's clock.
    """
    match record.status_at(now):
        case Status.INPROGRESS:
            if record.parked_at is not None:
                return "parked"
            if record.free or record.held_until <= now:
                return "settling" if record.settles_at(now) else "free"
            return "reserved" if is_reservation(record) else "running"
        case status:
            return str(status).lower()


def is_live(record: Record, now: float) -> bool:
    """Return whether a body may still be running under this claim."""
    return state(record, now) == "running" and not this_process().has_ended(record.process)


def written_at(record: Record) -> float | None:
    """Return when the record was last committed or claimed, in epoch seconds, or None if it has neither time."""
    moment = record.completed_at or record.claimed_at
    return None if moment is None else moment / 1000


def counted(records: int) -> str:
    """Return a number of records as text."""
    return f"{records} record" + ("" if records == 1 else "s")


def needs_decision(record: Record) -> bool:
    """Return whether a key is parked, or its messages are to be published again yet."""
    return record.parked_at is not None or record.parked_bytes > 0


def columns(record: Record, now: float) -> tuple[str, str, str, str, str, str]:
    """Return state, age, time left, attempt, task id and key, for one row of a list."""
    written = written_at(record)
    return (
        state(record, now),
        "?" if written is None else _span(now - written),
        "-" if record.parked_at is not None else _span(_time_left(record, now)),
        str(record.attempt),
        record.task_id or "?",
        record.key,
    )


def as_dict(record: Record, now: float, *, data: bool) -> dict[str, Any]:
    """Return the fields of a record as JSON types, times in ISO 8601 and UTC.

    Args:
        record: the record.
        now: epoch seconds by the store's clock.
        data: whether to include the stored result, and not only its size.
    """
    fields = {
        "key": record.key,
        "state": state(record, now),
        "task": record.task,
        "task_id": record.task_id,
        "worker": record.worker,
        "process": record.process,
        "process_has_ended": this_process().has_ended(record.process) or None,
        "claimed_at": _iso(record.claimed_at),
        # A failure has this time too, and is not completed.
        "finished_at": _iso(record.completed_at),
        "held_until": _iso(record.in_progress_expiration)
        if record.status is Status.INPROGRESS and not record.free and record.parked_at is None
        else None,
        "expires_at": None if record.parked_at is not None else _iso(record.expiration * 1000),
        "seconds_left": None if record.parked_at is not None else round(_time_left(record, now), 1),
        "attempt": record.attempt,
        "runs": record.runs,
        "unresolved_since": _iso(record.unresolved_since),
        "settled_at": _iso(record.settled_at),
        "parked_at": _iso(record.parked_at),
        "parked_bytes": record.parked_bytes or None,
        "previous_task_id": record.previous_task_id,
        "previous_claimed_at": _iso(record.previous_claimed_at),
        "generation": record.generation,
        "fence": record.fence,
        "error": record.error,
        "validation": record.validation,
        "validated_by": record.validated_by,
        "codec": record.codec,
        "data_bytes": None if record.data is None else len(as_bytes(record.data)),
        **_parts(record),
    }
    # A list does not fetch the messages.
    if record.parked or not record.parked_bytes:
        fields["parked_messages"] = sorted(record.parked) or None
    if data and record.data is not None:
        fields["data"] = _readable(record)
    return fields


def _parts(record: Record) -> dict[str, Any]:
    """Return the names of a record's steps, how many lie elsewhere, of which `show` adds the names, and its notes."""
    return {
        "steps": sorted(record.steps.here) or None,
        "steps_elsewhere": len(record.steps.elsewhere) or None,
        "deferred": dict(record.deferred) or None,
        "dispatched": sorted(record.dispatched) or None,
    }


def _readable(record: Record) -> str:
    """Return the data decompressed, as text; in hexadecimal if it is not text."""
    try:
        text = text_of(record)
        return text if isinstance(text, str) else text.decode()
    except (ValueError, zlib.error):
        return as_bytes(record.data or b"").hex()


def _time_left(record: Record, now: float) -> float:
    """Return the seconds until a claim or a stored outcome expires."""
    if record.free:
        return max(0.0, (record.settled_at or 0) / 1000 - now)
    until = record.held_until if record.status is Status.INPROGRESS else float(record.expiration)
    return max(0.0, until - now)


def _iso(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
