"""A test's own app, queue, journal and workers on one broker."""

from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from celery.result import AsyncResult

from tests.support.app import AppConfig, build_app
from tests.support.worker import Worker

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
        self._stack.callback(self._delete_queue)
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
        self, concurrency: int = 2, *options: str, pool: str = "prefork", elsewhere_skew_seconds: float | None = None
    ) -> Worker:
        """Return a worker that consumes this test's queue, on this machine or as if it were on another."""
        config = replace(self.config, elsewhere_skew_seconds=elsewhere_skew_seconds)
        worker = Worker(config, concurrency, *options, pool=pool)
        self._workers.append(worker)
        self._stack.callback(worker.kill)
        worker.wait_until_ready()
        return worker

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult:
        """Publish a task by its name; options are those of ``apply_async``."""
        return self.app.tasks[task].apply_async(args, **options)

    def result(self, published: AsyncResult, timeout_seconds: float = RESULT_SECONDS) -> Any:
        """Return a task's result when the backend has it, or raise its error."""
        return published.get(timeout=timeout_seconds)

    def _delete_queue(self) -> None:
        with self.app.connection_for_write() as connection:
            self.app.amqp.queues[self.config.queue](connection.default_channel).delete()
