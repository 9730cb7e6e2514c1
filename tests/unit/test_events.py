"""Events: what the log says of each, and observers that cannot change an outcome."""

import dataclasses
import logging
from typing import Any

import pytest

from idempotent_tasks import events
from idempotent_tasks.events import Event, Observers, log_event
from tests.support.logs import logged

NAMED: dict[str, Any] = {"task": "shop.charge", "task_id": "4f1c", "key": "shop.charge#17", "worker": "w1@shop"}

#: One event of each kind, and the level of its log record.
SAMPLES = [
    (events.Reserved(**NAMED, seconds=300.0), logging.DEBUG),
    (events.Joined(**NAMED, holder_task_id="77aa"), logging.INFO),
    (events.Refused(**NAMED, holder_task_id="77aa"), logging.INFO),
    (events.Unreserved(**NAMED, reason="StoreUnavailableError"), logging.INFO),
    (events.Claimed(**NAMED, fence=9, attempt=2), logging.DEBUG),
    (events.Committed(**NAMED, fence=9, replayable=True, seconds=1.5), logging.DEBUG),
    (events.Unreplayable(**NAMED, reason="too large"), logging.WARNING),
    (events.Renewed(**NAMED), logging.DEBUG),
    (events.Parked(**NAMED, reason="Rerun"), logging.ERROR),
    (events.Recovered(**NAMED, done=True), logging.INFO),
    (events.Released(**NAMED, reason="Retry"), logging.INFO),
    (events.Replayed(**NAMED, holder_task_id="77aa", age_seconds=12.5), logging.INFO),
    (events.Deferred(**NAMED, countdown_seconds=1.25, reason="busy", deferrals=3), logging.INFO),
    (events.Merged(**NAMED), logging.INFO),
    (events.Skipped(**NAMED), logging.INFO),
    (events.Dispatched(**NAMED), logging.DEBUG),
    (events.Superseded(**NAMED, fence=9), logging.WARNING),
    (events.Mismatched(**NAMED), logging.WARNING),
    (events.CrashLooped(**NAMED, crashes=5), logging.ERROR),
    (events.Unrecorded(**NAMED, reason="StoreUnavailableError"), logging.ERROR),
    (events.RecordedLate(**NAMED, fence=7, seconds=61.5), logging.INFO),
    (events.Lost(**NAMED), logging.ERROR),
]

each_event = pytest.mark.parametrize(("event", "level"), SAMPLES, ids=[type(event).__name__ for event, _ in SAMPLES])


def test_every_kind_has_a_sample() -> None:
    """No kind of event hides from these tests."""
    kinds = {name for name in events.__all__ if dataclasses.is_dataclass(getattr(events, name))}
    assert kinds - {"Event"} == {type(event).__name__ for event, _ in SAMPLES}
    assert {type(event) for event, _ in SAMPLES} == set(events.KINDS)


@each_event
def test_an_event_is_logged_with_its_fields(event: Event, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """The record has the event's name and fields in ``extra``, and in its text for people."""
    with caplog.at_level(logging.DEBUG, logger="idempotent_tasks"):
        log_event(event)
    (record,) = logged(caplog)
    assert record.name == "idempotent_tasks"
    assert record.levelno == level
    assert vars(record)["idempotency_event"] == type(event).__name__
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        assert vars(record)[f"idempotency_{field.name}"] == value
        # A worker writes its node name into its own log only where the format asks for it.
        assert field.name == "worker" or str(value) in record.getMessage()


def test_the_text_reads_well(caplog: pytest.LogCaptureFixture) -> None:
    """The event comes first, then task, id, key and the event's own fields."""
    with caplog.at_level(logging.INFO, logger="idempotent_tasks"):
        log_event(events.Deferred(**NAMED, countdown_seconds=1.25, reason="busy", deferrals=3))
    assert caplog.messages == [
        "deferred shop.charge[4f1c] key shop.charge#17 countdown_seconds=1.25 reason=busy deferrals=3"
    ]


def test_what_is_below_the_level_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    """The common path costs no log record where nobody asked for it."""
    with caplog.at_level(logging.INFO, logger="idempotent_tasks"):
        log_event(events.Claimed(**NAMED, fence=9, attempt=2))
    assert logged(caplog) == []


@each_event
def test_events_cannot_be_changed(event: Event, level: int) -> None:
    """An observer sees what the others see."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.key = "another"  # type: ignore[misc]


def test_every_observer_is_told_in_order() -> None:
    """One event reaches all observers, in the order in which they were given."""
    told: list[str] = []
    event = events.Lost(**NAMED)
    Observers([lambda each: told.append(f"first {each.key}"), lambda each: told.append(f"second {each.key}")])(event)
    assert told == ["first shop.charge#17", "second shop.charge#17"]


def test_a_failing_observer_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged under its name, and the next observer is told."""
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    Observers([broken, told.append])(events.Lost(**NAMED))
    assert told == [events.Lost(**NAMED)]
    (record,) = logged(caplog)
    assert "broken" in record.getMessage()
    assert "failed on Lost" in record.getMessage()
    assert record.exc_info


def test_an_observer_may_end_the_process() -> None:
    """What is no ordinary error is not swallowed."""

    def leaving(event: Event) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        Observers([leaving])(events.Lost(**NAMED))


def test_an_interrupt_is_no_observers_failure() -> None:
    """A soft time limit that strikes inside an observer ends the body's time, not only the observer."""

    class Interrupt(Exception):  # noqa: N818 - named as Celery names its own
        """Raised from outside."""

    def interrupted(event: Event) -> None:
        raise Interrupt

    with pytest.raises(Interrupt):
        Observers([interrupted], interrupts=(Interrupt,))(events.Lost(**NAMED))
