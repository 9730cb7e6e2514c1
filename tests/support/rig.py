"""A test's own app, queue, journal and workers on one broker; and messages with what must be true when all is over."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from celery import _state
from celery.result import AsyncResult

from idempotent_tasks import RecordNotFoundError
from idempotent_tasks.messaging.queues import DELAYS
from idempotent_tasks.settings import settings_of
from tests.support.app import AppConfig, build_app
from tests.testbed.waiting import wait_for
from tests.testbed.workers import CeleryWorker

__all__ = ["Load", "Rig", "Worker"]

RESULT_SECONDS = 30.0
LOAD_SECONDS = 60.0
STOP_SECONDS = 30.0
SUBSCRIBED_SECONDS = 30.0


class Worker(CeleryWorker):
    """A worker of a test's app, which consumes when `wait_until_consuming` returns."""

    def __init__(self, config: AppConfig, concurrency: int = 2, *options: str, pool: str = "prefork") -> None:
        super().__init__(
            "tests.support.worker_app",
            f"w{uuid4().hex[:6]}@localhost",
            config.queue,
            Path(config.directory),
            os.environ | config.environment(),
            *options,
            pool=pool,
            concurrency=concurrency,
            preloaded=True,
        )
        self._journal = config.journal

    def wait_until_consuming(self) -> None:
        """Return when the worker consumes.

        Raises:
            TimeoutError: with the end of its log.
        """
        self.wait_until_ready(lambda: self._journal.entries("worker-ready", worker=self.name))

    def retire(self) -> None:
        """Terminate the parent when it has acknowledged every delivery that it received, and return when it has exited.

        Raises:
            TimeoutError: with the journal, or the end of its log.
        """
        here = {"pid": self.process.pid}
        self._journal.wait_for("acknowledged", times=self._journal.count("received", **here), **here)
        self.process.terminate()

    def shut_down(self, *numbers: signal.Signals) -> None:
        """Send the parent one signal after another, each when it heard the one before, and return when it has exited.

        Raises:
            TimeoutError: with the end of its log.
        """
        *first, last = numbers
        for heard, number in enumerate(first, 1):
            self.process.send(number)
            self._wait_until_heard(heard)
        self.process.end_by(last, STOP_SECONDS)

    def _wait_until_heard(self, shutdowns: int) -> None:
        wait_for(
            lambda: self.log().count(" shutdown (MainProcess)") >= shutdowns,
            STOP_SECONDS,
            lambda: f"worker {self.name} does not hear:\n{self.process.tail()}",
        )


class Rig:
    """Publishes tasks, starts workers, and kills whatever is left of them at the end."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self.journal = config.journal
        self.app = build_app(config)
        self._workers: list[Worker] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(self.app.close)
        # Celery before 5.7 asks the current app, not the tasks' own, where a chord in a chain has its results.
        self._stack.callback(setattr, _state._tls, "current_app", _state._tls.current_app)
        self.app.set_current()
        self._stack.callback(self._disconnect)
        self._stack.callback(self._delete_queues)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        # pytest shows what is printed here beside a failure, and nowhere else.
        print(f"journal:\n{self.journal.dump()}")  # noqa: T201
        for worker in self._workers:
            print(f"log of {worker.name}:\n{worker.process.tail(200)}")  # noqa: T201

    def start_worker(
        self,
        concurrency: int = 2,
        *options: str,
        pool: str = "prefork",
        visibility_seconds: int | None = None,
        **changes: Any,
    ) -> Worker:
        """Return a worker that consumes this test's queue, under the test's `AppConfig` with changes.

        On Redis it is each worker's own visibility timeout that decides which messages it gives back to the queue.
        """
        if visibility_seconds is not None:
            transport_options = {**self.config.transport_options, "visibility_timeout": visibility_seconds}
            changes = {"transport_options": transport_options, **changes}
        before = self._subscribers()
        worker = Worker(replace(self.config, **changes), concurrency, *options, pool=pool)
        self._workers.append(worker)
        self._stack.callback(worker.kill)
        worker.wait_until_consuming()
        wait_for(
            lambda: self._subscribers() >= before + self._subscribes,
            SUBSCRIBED_SECONDS,
            lambda: f"worker {worker.name} has not subscribed:\n{worker.process.tail()}",
        )
        return worker

    def declare_queues(self) -> None:
        """Declare the queues that no worker of the test consumes, as their own workers would do."""
        with self.app.connection_for_write() as connection:
            for queue in self.app.amqp.queues.values():
                queue(connection.default_channel).declare()

    def ask_store(self) -> None:
        """Send this process's first request to the store.

        On a busy machine it takes longer than a publish waits for its reservation.
        """
        with suppress(RecordNotFoundError):
            settings_of(self.app).store.get("nobody")

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        """Publish a task by its name; options are those of ``apply_async``."""
        return self.app.tasks[task].apply_async(args, **options)

    def result(self, published: AsyncResult, timeout_seconds: float = RESULT_SECONDS) -> Any:
        """Return a task's result when the backend has it, or raise its error."""
        return published.get(timeout=timeout_seconds)

    @property
    def _subscribes(self) -> bool:
        """Whether a worker subscribes to its queue, which kombu does on Redis after the worker is ready."""
        return self.config.exchange_type == "fanout" and self.config.broker_url.startswith("redis:")

    def _subscribers(self) -> int:
        """Return to how many workers Redis would pass a broadcast on: kombu ignores the empty one that asks for it."""
        if not self._subscribes:
            return 0
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            return channel.client.publish(f"{channel.keyprefix_fanout}{self.config.queue}/{self.config.queue}", "")

    def _disconnect(self) -> None:
        """Close the sockets that Celery leaves to the garbage collector, whose warning would fail some other test."""
        consumer = getattr(self.app.backend, "result_consumer", None)
        if consumer is not None:
            consumer.stop()
            # A result that is forgotten later would connect again, to unsubscribe: Celery 5.7 from what it has
            # subscribed to, and older ones from any.
            consumer.subscribed_to.clear()
            consumer._pubsub = None
            self.app.backend.client.connection_pool.disconnect()

    def _delete_queues(self) -> None:
        with self.app.connection_for_write() as connection:
            for queue in self.app.amqp.queues.values():
                queue(connection.default_channel).delete()
                if connection.transport.driver_type == "amqp":
                    for delay in DELAYS:
                        connection.default_channel.queue_delete(f"{queue.name}.idempotency-delay-{delay}")


class Load:
    """Publishes ``charge`` on a rig, many messages to a key, each with its own value, and accounts for every one.

    Args:
        rig: with at least one worker.
        context: returns what a failure's message shall say besides.
    """

    def __init__(self, rig: Rig, context: Callable[[], object] = str) -> None:
        #: What was published, by key.
        self.published: dict[str, list[AsyncResult]] = {}
        self._rig = rig
        self._context = context
        self._sent = 0

    def send(self, key: str, times: int = 1, **options: Any) -> AsyncResult:
        """Publish a key's message this often, and return the last."""
        for _ in range(times):
            self._sent += 1
            published = self._rig.send("charge", key, self._sent, **options)
            self.published.setdefault(key, []).append(published)
        return published

    def account(self) -> None:
        """Wait for every result, and find one effect a key and the same result for all of its messages."""
        results = {key: self._results(published) for key, published in self.published.items()}
        effects = Counter(entry["key"] for entry in self._rig.journal.entries("effect", task="charge"))
        context = self._context()
        wrong = {key: count for key, count in effects.items() if count != 1}
        assert not wrong, f"effects of a key: {wrong}; {context}"
        assert effects.keys() == results.keys(), f"{effects.keys() ^ results.keys()}; {context}"
        unequal = {key: values for key, values in results.items() if len(set(values)) != 1}
        assert not unequal, f"results of a key: {unequal}; {context}"

    def _results(self, published: list[AsyncResult]) -> list[Any]:
        try:
            return [self._rig.result(each, LOAD_SECONDS) for each in published]
        except Exception as error:
            error.add_note(f"waiting for {[(each.id, each.state) for each in published]}; {self._context()}")
            raise
