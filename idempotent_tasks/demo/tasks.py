"""The Celery app of the demo's workers: one function as a plain task and as an `IdempotentTask`."""

import os
from pathlib import Path
from typing import Any

from celery import Celery, signals

from idempotent_tasks import Idempotency, IdempotentTask
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.demo.journal import Entry, Journal, What
from idempotent_tasks.demo.plan import TIME_LIMIT_SECONDS, VISIBILITY_TIMEOUT_SECONDS
from idempotent_tasks.events import Deferred, Replayed

__all__ = ["BROKER_VARIABLE", "IDEMPOTENT", "JOURNAL_VARIABLE", "PLAIN", "STORE_VARIABLE", "app", "configure"]

#: Environment variables that pass the addresses to the workers.
BROKER_VARIABLE = "IDEMPOTENT_TASKS_DEMO_BROKER"
STORE_VARIABLE = "IDEMPOTENT_TASKS_DEMO_STORE"
JOURNAL_VARIABLE = "IDEMPOTENT_TASKS_DEMO_JOURNAL"
#: The names of the two tasks.
PLAIN = "demo.charge_plain"
IDEMPOTENT = "demo.charge_idempotent"
#: Seconds that the body sleeps between two checks of the clock.
_STEP_SECONDS = 0.05

clock = SystemClock()
journal = Journal(Path(os.environ.get(JOURNAL_VARIABLE, os.devnull)))


def configure(app: Celery, broker_url: str) -> Celery:
    """Configure an app for the demo's broker, with a visibility timeout short enough to watch."""
    app.conf.broker_url = broker_url
    app.conf.broker_transport_options = {
        "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # A worker that is killed while it restores messages blocks the others for this long; the default is 300 s.
        "unacked_mutex_expire": 3,
    }
    app.conf.broker_connection_retry_on_startup = True
    app.conf.worker_prefetch_multiplier = 1
    return app


def record(what: What, payment: str, cents: int = 0) -> None:
    """Append to the journal what this process has done."""
    journal.append(Entry(at=clock.now(), what=what, payment=payment, pid=os.getpid(), worker=os.getppid(), cents=cents))


def charge(payment: str, cents: int, seconds: float) -> str:
    """Charge a card through a gateway that is not idempotent."""
    record(What.STARTED, payment)
    finish_at = clock.now() + seconds
    while (left := finish_at - clock.now()) > 0:
        clock.sleep(min(left, _STEP_SECONDS))
    record(What.CHARGED, payment, cents)
    return f"{payment}: {cents} cents"


def observe(event: object) -> None:
    """Append replays and deferrals to the journal; an observer of the library."""
    match event:
        case Replayed():
            record(What.REPLAYED, _payment_of(event.task_id))
        case Deferred():
            record(What.DEFERRED, _payment_of(event.task_id))
        case _:
            pass


app = configure(Celery("demo"), os.environ.get(BROKER_VARIABLE, "memory://"))
app.conf.idempotency_store = os.environ.get(STORE_VARIABLE, "memory://")
app.conf.idempotency_observers = [observe]

app.task(name=PLAIN, shared=False, time_limit=TIME_LIMIT_SECONDS, acks_late=True, reject_on_worker_lost=True)(charge)
app.task(
    name=IDEMPOTENT,
    shared=False,
    time_limit=TIME_LIMIT_SECONDS,
    base=IdempotentTask,
    idempotency=Idempotency(key="payment", validate="cents", lease=3),
)(charge)


def _ready(**_: Any) -> None:
    journal.append(Entry(at=clock.now(), what=What.READY, pid=os.getpid(), worker=os.getpid()))


def _delivered(task_id: str, **_: Any) -> None:
    record(What.DELIVERED, _payment_of(task_id))


def _finished(task_id: str, **_: Any) -> None:
    record(What.FINISHED, _payment_of(task_id))


def _payment_of(task_id: str) -> str:
    """Return the payment's name from a task id, ``NAME.MESSAGE``."""
    return task_id.partition(".")[0]


signals.worker_ready.connect(_ready)
signals.task_prerun.connect(_delivered)
signals.task_postrun.connect(_finished)
