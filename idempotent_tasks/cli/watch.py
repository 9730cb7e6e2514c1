"""``idempotency watch``: a live view of the claims in flight, and of the rates of the events that workers send."""

import json
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import click

from idempotent_tasks.cli.context import AdminContext, pass_admin_context
from idempotent_tasks.cli.format import as_dict, columns
from idempotent_tasks.cli.records import matching
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Record
from idempotent_tasks.observers.celery_events import REPORTED, event_type

__all__ = ["watch"]

#: Seconds over which rates are averaged.
WINDOW: Final = 10.0
#: Rows of the screen that do not show claims.
FRAME_ROWS: Final = 6
#: Characters of a UUID.
TASK_ID_WIDTH: Final = 36
#: Seconds between two checks whether to end, and between two attempts to connect.
RECONNECT_SECONDS: Final = 0.2
#: Seconds for which `--once` waits for the broker's first answer, and for which the end waits for the broker.
FIRST_ANSWER_SECONDS: Final = 5.0
END_SECONDS: Final = 0.5
#: The fault of a broker that has not answered yet: one that accepts a connection may say nothing for ever.
NO_ANSWER: Final = "no answer yet"
#: kombu's options of a connection: it would try again for ever by itself, and tell nobody.
RETRIES: Final = {"max_retries": 1, "interval_start": RECONNECT_SECONDS, "interval_step": 0}
#: The name under which each type of Celery event is counted.
COUNTED: Final = {event_type(kind): kind.__name__.lower() for kind in REPORTED}
NO_EVENTS: Final = 'no events yet: workers send them with app.conf.idempotency_observers = ["log", "celery"]'


@dataclass
class Rates:
    """A sliding window over the events that came in."""

    seen: deque[tuple[float, str]] = field(default_factory=deque)
    total: int = 0
    #: The type of the broker's last error; empty while its events are received.
    fault: str = NO_ANSWER
    #: Set once the broker has answered, or refused to.
    answered: threading.Event = field(default_factory=threading.Event)

    def reached(self, fault: str = "") -> None:
        """Note how the last attempt to receive events ended: with the type of an error, or well."""
        self.fault = fault
        self.answered.set()

    def add(self, event: dict[str, Any]) -> None:
        """Count a Celery event, if it is one of this library."""
        kind = COUNTED.get(event["type"])
        if kind is not None:
            self.total += 1
            self.seen.append((this_process().clock.now(), kind))

    def per_second(self) -> dict[str, float]:
        """Return the events a second of each kind, averaged over the last `WINDOW` seconds."""
        oldest = this_process().clock.now() - WINDOW
        while self.seen and self.seen[0][0] < oldest:
            self.seen.popleft()
        counts = Counter(kind for _, kind in self.seen)
        return {kind: round(counts[kind] / WINDOW, 1) for kind in COUNTED.values()}


@click.command()
@click.option("--interval", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Seconds.")
@click.option("--task", help="Only claims of this task.")
@click.option("--once", is_flag=True, help="Print one picture as an object of JSON, after one interval, and end.")
@pass_admin_context
def watch(admin: AdminContext, *, interval: float, task: str | None, once: bool) -> None:
    """Watch the claims in flight, and how many replays, deferrals and crash loops a second workers report.

    Each refresh scans the table, and DynamoDB bills for each item of it.  Reports need workers with the
    observer "celery".  Ends with Ctrl-C.
    """
    rates = Rates()
    with _receiving(admin.app, rates):
        if once:
            # Before the interval, so that a store that does not answer is reported at once.
            claims = [as_dict(claim, admin.now(), data=False) for claim in _claims(admin, task)]
            rates.answered.wait(FIRST_ANSWER_SECONDS)
            this_process().clock.sleep(interval)
            shown = {"in_flight": claims, "per_second": rates.per_second(), "events": rates.total}
            click.echo(json.dumps({**shown, "broker_error": rates.fault or None}))
            return
        with suppress(KeyboardInterrupt):
            _show(admin, task, rates, interval)


def _show(admin: AdminContext, task: str | None, rates: Rates, interval: float) -> None:
    try:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - needs the optional extra
        from rich.console import Console, Group  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ModuleNotFoundError:
        raise click.ClickException("watch draws with rich: pip install rich, or use --once") from None

    console = Console()

    def frame() -> Group:
        claims = _claims(admin, task)
        shown = "   ".join(f"{kind} {rate:g}" for kind, rate in rates.per_second().items() if rate) or "nothing"
        table = Table(box=SIMPLE_HEAD, expand=True)
        for name in ("age", "left", "attempt"):
            table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
        table.add_column("task id", no_wrap=True, min_width=TASK_ID_WIDTH)
        for name in ("worker", "key"):
            table.add_column(name, no_wrap=True)
        for claim in claims[: max(1, console.height - FRAME_ROWS)]:
            _, age, left, attempt, task_id, key = columns(claim, admin.now())
            table.add_row(age, left, attempt, task_id, claim.worker or "?", key)
        return Group(
            Text(f"{len(claims)} claims in flight in {admin.store.table}; those that expire first come first"),
            Text(_rates_line(rates, shown)),
            table,
        )

    with Live(frame(), console=console, refresh_per_second=4, screen=True) as live:
        while True:
            this_process().clock.sleep(interval)
            live.update(frame())


def _rates_line(rates: Rates, shown: str) -> str:
    if rates.fault:
        return f"no events: the broker does not answer ({rates.fault})"
    return f"a second, over {WINDOW:g} s:   {shown}" if rates.total else NO_EVENTS


def _claims(admin: AdminContext, task: str | None) -> list[Record]:
    """Return the claims in flight, the soonest to expire first."""
    running = matching(admin, states=("running",), task=task, before=None)
    return sorted((each for each in running if isinstance(each, Record)), key=lambda claim: claim.held_until)


@contextmanager
def _receiving(app: Any, rates: Rates) -> Iterator[None]:
    """Count the broker's events in a thread, which connects again whenever the broker is away."""
    ended = threading.Event()

    def receive() -> None:
        while not ended.wait(RECONNECT_SECONDS):
            try:
                with app.connection_for_read(transport_options=RETRIES) as broker:
                    _count_until(ended, app.events.Receiver(broker, handlers={"*": rates.add}), rates)
            except Exception as error:  # noqa: BLE001 - whatever a transport raises; the claims are shown all the same
                rates.reached(type(error).__name__)

    thread = threading.Thread(target=receive, name="idempotency-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # It may be waiting for a broker that does not answer; the thread does not keep the process.
        thread.join(END_SECONDS)


def _count_until(ended: threading.Event, receiver: Any, rates: Rates) -> None:
    # Celery's own would log the error with its traceback, and try again for ever.
    receiver.on_connection_error = _raise
    with receiver.consumer_context(wakeup=False) as (connection, _channel, _consumers):
        rates.reached()
        while not ended.is_set():
            with suppress(TimeoutError):
                connection.drain_events(timeout=RECONNECT_SECONDS)


def _raise(error: Exception, _interval: float) -> NoReturn:
    raise error
