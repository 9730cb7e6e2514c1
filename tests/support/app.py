"""The Celery app that a test and its workers share, described by a value that travels in the environment."""

import threading
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from kombu.utils.imports import symbol_by_name

from tests.support.bodies import bodies
from tests.testbed.elsewhere import store_elsewhere
from tests.testbed.journal import Journal
from tests.testbed.workers import WorkerConfig

__all__ = ["AppConfig", "build_app", "observe"]

Options = dict[str, Any]

PLAIN = "celery:Task"
#: What a plain task must ask for to be redelivered at all; `IdempotentTask` has both by itself.
SAFE: Options = {"acks_late": True, "reject_on_worker_lost": True}
#: Options that have no JSON form.
PYTHON_OPTIONS: dict[str, Options] = {"fail": {"autoretry_for": (ConnectionError,), "retry_kwargs": {"countdown": 0}}}
#: Tasks that nothing guards, whatever the app's base is.
BASES = {"follow_plain": PLAIN}


@dataclass(frozen=True, kw_only=True)
class AppConfig(WorkerConfig):
    """All that a worker process must know."""

    broker_url: str
    transport_options: Options
    result_backend: str
    #: What the keys of the results begin with.
    result_prefix: str
    queue: str
    #: The app's default queue, where that is another than the one that the workers consume.
    default_queue: str | None = None
    #: The type of the queue's exchange; native delayed delivery asks for ``topic``.
    exchange_type: str = "direct"
    #: RabbitMQ's arguments of the queue, such as ``x-queue-type``.
    queue_arguments: Options = field(default_factory=dict)
    #: Where the journal is.
    directory: str
    #: The tasks' base class, as ``module:Class``.
    base: str = PLAIN
    #: More of ``app.conf``.
    settings: Options = field(default_factory=dict)
    #: Options of single tasks, by task name.
    tasks: dict[str, Options] = field(default_factory=dict)
    #: The worker is to think that it is on a machine of its own, whose clock is ahead by so many seconds.
    elsewhere_skew_seconds: float | None = None
    #: Celery itself is not to notice that a process of the pool has ended.
    blind_to_exits: bool = False

    @property
    def journal(self) -> Journal:
        """The journal of this test."""
        return Journal(Path(self.directory))


def build_app(config: AppConfig) -> Celery:
    """Return the app with every body registered as a task; nothing global is touched."""
    app = Celery("tests", set_as_current=False)
    default = config.default_queue or config.queue
    app.conf.update(
        broker_url=config.broker_url,
        broker_transport_options=config.transport_options,
        broker_connection_retry_on_startup=True,
        result_backend=config.result_backend,
        result_backend_transport_options={"global_keyprefix": config.result_prefix},
        result_expires=600,
        task_queues=[_queue(config, name) for name in sorted({config.queue, default})],
        task_default_queue=default,
        task_default_exchange=default,
        task_default_exchange_type=config.exchange_type,
        task_default_routing_key=default,
        worker_enable_remote_control=False,
        worker_prefetch_multiplier=1,
    )
    app.conf.update(config.settings)
    if config.elsewhere_skew_seconds is not None:
        app.conf.idempotency_store = store_elsewhere(app.conf.idempotency_store, config.elsewhere_skew_seconds)
    for name, body in bodies(config.journal).items():
        base = BASES.get(name, config.base)
        options = (SAFE if base == PLAIN else {}) | PYTHON_OPTIONS.get(name, {}) | config.tasks.get(name, {})
        app.task(body, name=name, bind=True, base=symbol_by_name(base), shared=False, **options)
    return app


def _queue(config: AppConfig, name: str) -> Queue:
    exchange = Exchange(name, type=config.exchange_type, auto_delete=True)
    return Queue(name, exchange, routing_key=name, queue_arguments=config.queue_arguments or None)


def observe(event: Any) -> None:
    """Write ``Claimed``, ``Committed`` and so on into the journal, with the thread, then pass the gate of that name."""
    name, journal = type(event).__name__, _journal_of_this_process()
    details = asdict(event)
    journal.write(name, id=details.pop("task_id"), thread=threading.get_ident(), **details)
    journal.pass_gate(name)


@cache
def _journal_of_this_process() -> Journal:
    return AppConfig.of_this_process().journal
