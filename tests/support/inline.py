"""A worker in this thread: messages of kombu's in-memory transport through Celery's own request, pool and tracer."""

from typing import Any

from celery import Celery
from celery.concurrency.solo import TaskPool
from celery.utils.imports import instantiate
from celery.worker.strategy import hybrid_to_proto2
from kombu.message import Message

__all__ = ["UNREACHABLE", "InlineWorker"]

HOSTNAME = "inline@host"

#: Settings of an app whose broker takes no message, and that has no patience with it.
UNREACHABLE: dict[str, Any] = {
    "broker_write_url": "amqp://127.0.0.1:1//",
    "broker_transport_options": {"max_retries": 1, "interval_start": 0, "interval_step": 0},
    "task_publish_retry": False,
}


class InlineWorker:
    """Takes the messages of one queue and runs them one at a time, when told; countdowns are read, not waited for.

    Args:
        app: the app, current in this thread, because the tracer asks for the current one.
        queue: the queue's name.
    """

    def __init__(self, app: Celery, queue: str) -> None:
        self.app = app
        self._queue = queue
        #: The connection to the queue.
        self.connection = app.connection_for_read()
        self._pool = TaskPool(app=app, initargs=(app, HOSTNAME))

    def close(self) -> None:
        """Delete the queue, which the transport keeps for the whole process."""
        self._bound().delete()
        self.connection.release()

    def waiting(self) -> int:
        """Return how many messages nobody took yet."""
        return int(self._bound().queue_declare(passive=True).message_count)

    def take(self) -> Message:
        """Return the next message, not acknowledged."""
        message = self._bound().get(no_ack=False, accept=self.app.conf.accept_content)
        assert message is not None, f"no message waits in {self._queue}"
        return message

    def receive(self, message: Message) -> Any:
        """Return the request that a worker's parent process makes of a message."""
        task = self.app.tasks[message.headers.get("task") or message.payload["task"]]
        return instantiate(
            task.Request,
            message,
            app=self.app,
            task=task,
            hostname=HOSTNAME,
            on_ack=message.ack_log_error,
            on_reject=message.reject_log_error,
            **(_read_old(message) if "task" not in message.headers else {}),
        )

    def run(self, message: Message) -> None:
        """Run one message's task and settle the message as a worker does."""
        self.receive(message).execute_using_pool(self._pool)

    def run_next(self) -> Message:
        """Run the next message and return it."""
        message = self.take()
        self.run(message)
        return message

    def drain(self, at_most: int = 20) -> int:
        """Run messages until none waits, those they publish included, and return how many ran."""
        for count in range(at_most):
            if not self.waiting():
                return count
            self.run_next()
        raise AssertionError(f"{self._queue} still has {self.waiting()} messages after {at_most} runs")

    def state(self, task_id: str) -> str:
        """Return the state that the result backend has for a task."""
        return str(self.app.AsyncResult(task_id).state)

    def result(self, task_id: str) -> Any:
        """Return the result, or the error, that the result backend has for a task."""
        return self.app.AsyncResult(task_id).result

    def _bound(self) -> Any:
        bound = self.app.amqp.queues[self._queue].bind(self.connection.default_channel)
        bound.declare()
        return bound


def _read_old(message: Message) -> dict[str, Any]:
    """Return what a worker makes of a message of protocol 1, whose body says everything."""
    body, headers, decoded, utc = hybrid_to_proto2(message, message.payload)
    return {"body": body, "headers": headers, "decoded": decoded, "utc": utc}
