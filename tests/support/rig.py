"""A test's own app, queue, journal and workers on one broker."""

from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from celery import _state
from celery.result import AsyncResult

from idempotent_tasks.route import DELAYS
from tests.support.app import AppConfig, build_app
from tests.testbed.workers import Worker

__all__ = ["Rig"]

RESULT_SECONDS = 30.0


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
        worker = Worker(replace(self.config, **changes), concurrency, *options, pool=pool)
        self._workers.append(worker)
        self._stack.callback(worker.kill)
        worker.wait_until_ready()
        return worker

    def declare_queues(self) -> None:
        """Declare the queues that no worker of the test consumes, as their own workers would do."""
        with self.app.connection_for_write() as connection:
            for queue in self.app.amqp.queues.values():
                queue(connection.default_channel).declare()

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        """Publish a task by its name; options are those of ``apply_async``."""
        return self.app.tasks[task].apply_async(args, **options)

    def result(self, published: AsyncResult, timeout_seconds: float = RESULT_SECONDS) -> Any:
        """Return a task's result when the backend has it, or raise its error."""
        return published.get(timeout=timeout_seconds)

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
