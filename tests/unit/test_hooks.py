"""Worker start: a real worker controller is refused where its configuration cannot keep the promise."""

import logging
import socket
from typing import Any
from urllib.request import urlopen

import pytest
from celery import Celery
from celery.worker import WorkController

from idempotent_tasks import IdempotentTask
from idempotent_tasks.core.delivery import HARD_LIMIT_ENTRY
from idempotent_tasks.settings import PORT_VARIABLE
from tests.support.inline import InlineWorker
from tests.testbed.processes import free_port, listening

#: A port of the local host on which nothing listens.
NOWHERE = "dynamodb://127.0.0.1:1/keys"
BOUND_SECONDS = 30.0


def do_nothing() -> None:
    """Be a body."""


def start(app: Celery, pool: str = "solo", **options: Any) -> WorkController:
    """Make a worker as the command line does, up to the point where its pool would start."""
    return WorkController(app=app, pool=pool, concurrency=1, **options)


def guard_a_task(app: Celery) -> None:
    """Give the app one guarded task."""
    app.task(do_nothing, name="shop.charge", base=IdempotentTask, shared=False)


def test_an_app_without_guarded_tasks_is_left_alone(app: Celery) -> None:
    """Importing the library asks nothing of workers that do not use it."""
    app.conf.idempotency_store = "nonsense"
    app.task(do_nothing, name="shop.plain", shared=False)
    assert start(app, "prefork")


@pytest.mark.parametrize("store", [None, "memory://"])
def test_options_of_an_app_without_guarded_tasks_are_found(
    app: Celery, store: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The one task that was meant to be guarded is not: that is said, and the worker starts."""
    app.conf.update(idempotency_store=store, broker_url="amqp://localhost")
    app.task(do_nothing, name="shop.charge", shared=False, idempotency={"on_busy": "wait"})
    assert start(app)
    (finding,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert finding.__dict__["idempotency_finding"] == "task-not-guarded"
    assert "idempotency= is given to what is no IdempotentTask: task 'shop.charge'" in finding.getMessage()


def test_such_options_may_stop_the_worker(app: Celery) -> None:
    """As any finding."""
    app.conf.update(idempotency_checks="error", broker_url="amqp://localhost")
    app.task(do_nothing, name="shop.charge", shared=False, idempotency={"on_busy": "wait"})
    with pytest.raises(SystemExit, match="the checks found task-not-guarded"):
        start(app)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"idempotency_store": None}, "has no idempotency store"),
        ({"idempotency_store": "nonsense"}, "unusable idempotency store"),
        ({"idempotency_on_busy": "queue"}, "on_busy='queue'"),
        ({"idempotency_storage": "memory://"}, "no setting 'idempotency_storage'"),
        ({"idempotency_observers": "no_such_module:observe"}, "idempotency_observers cannot be imported"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_setting_stops_the_worker(
    app: Celery, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], what: str
) -> None:
    """The worker ends before its first message, and the log says why."""
    guard_a_task(app)
    app.conf.update(settings)
    with pytest.raises(SystemExit, match=what):
        start(app)
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "the worker does not start" in record.getMessage()


def test_a_memory_store_stops_a_prefork_worker(app: Celery) -> None:
    """Its children would each have records of their own; the error names what to use."""
    guard_a_task(app)
    with pytest.raises(SystemExit, match=r'memory:// store cannot guard a prefork worker.*"dynamodb://'):
        start(app, "prefork")


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_memory_store_serves_a_worker_of_one_process(app: Celery, pool: str) -> None:
    """Threads share their memory."""
    guard_a_task(app)
    assert start(app, pool)


def test_a_table_that_cannot_be_reached_is_only_a_warning(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """The store may come back: deliveries are deferred until then, and the log says that nothing is well."""
    guard_a_task(app)
    app.conf.idempotency_store = NOWHERE
    assert start(app, "prefork")
    assert any("store-unreachable" in message for message in caplog.messages)


def test_a_started_worker_is_remembered(app: Celery, worker: InlineWorker) -> None:
    """Its pool's time limit reaches the requests that it receives."""
    guard_a_task(app)
    app.conf.idempotency_store = NOWHERE
    controller = start(app, "prefork", time_limit=40)
    app.tasks["shop.charge"].apply_async()
    message = worker.take()
    request = worker.receive(message)
    message.ack()
    assert request.request_dict[HARD_LIMIT_ENTRY] == 40.0
    del controller


class TestMetrics:
    """``idempotency_prometheus_port``."""

    @pytest.fixture
    def port(self, app: Celery) -> int:
        """A free port of the app's setting."""
        guard_a_task(app)
        app.conf.idempotency_prometheus_port = port = free_port()
        return port

    def test_a_worker_serves_its_metrics(self, app: Celery, port: int) -> None:
        """Without a line of code: the observer counts, the worker serves, on this machine only."""
        assert start(app)
        assert app.tasks["shop.charge"].apply().successful()
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=BOUND_SECONDS) as answer:
            assert 'idempotent_tasks_events_total{event="committed",task="shop.charge"}' in answer.read().decode()

    def test_the_environment_beats_the_setting(
        self, app: Celery, port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two workers of one app on one machine need two ports."""
        other = free_port()
        monkeypatch.setenv(PORT_VARIABLE, str(other))
        with caplog.at_level(logging.INFO, logger="idempotent_tasks"):
            assert start(app)
        assert f"metrics are served on 127.0.0.1:{other}" in caplog.messages
        assert not listening(port)

    def test_a_port_that_is_taken(self, app: Celery, port: int, caplog: pytest.LogCaptureFixture) -> None:
        """The worker works all the same, and says what is wrong."""
        with socket.create_server(("127.0.0.1", port)):
            assert start(app)
        (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert f"the metrics cannot be served on 127.0.0.1:{port}" in record.getMessage()

    def test_a_prefork_worker_needs_a_folder(self, app: Celery, port: int) -> None:
        """Its parent would serve nothing but what it counts itself."""
        with pytest.raises(SystemExit, match="PROMETHEUS_MULTIPROC_DIR"):
            start(app, "prefork")
        assert not listening(port)

    def test_a_disabled_worker_is_scraped_on(self, app: Celery, port: int) -> None:
        """An alert of a target that is gone would tell of another trouble than there is."""
        app.conf.idempotency_disabled = True
        assert start(app)
        assert listening(port)
