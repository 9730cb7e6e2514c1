"""One real worker of a contender, from the side that sends it work and looks at what it takes of the machine."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from redis import Redis

from benchmarks.speed.app import build_app, queue_named
from benchmarks.speed.contenders import CHARGE
from benchmarks.speed.errors import SpeedError
from benchmarks.speed.marks import Tally, tally_of
from benchmarks.speed.place import VARIABLE, Place
from tests.testbed.processes import ChildProcess
from tests.testbed.waiting import wait_for

__all__ = ["Worker", "new_order", "running"]

PROJECT_ROOT: Final = Path(__file__).parents[2]
START_SECONDS: Final = 60.0
#: Seconds in which a worker that still works ends another task.
PATIENCE: Final = 60.0


class Worker:
    """A running worker; see `running`."""

    def __init__(self, place: Place, process: ChildProcess, redis: "Redis") -> None:
        self._place = place
        self._process = process
        self._redis = redis
        self._app = build_app(place)
        self._ended = 0

    @property
    def pid(self) -> int:
        """The id of its main process."""
        return self._process.pid

    def run(self, task: str, order_id: str, **options: Any) -> None:
        """Have it run one task, and all that follows it; return when everything is acknowledged.

        Args:
            task: the task's name.
            order_id: of the order that is its argument.
            options: of ``apply_async``.
        """
        self._app.tasks[task].apply_async(({"id": order_id},), **options)
        self._wait_for(1 + len(options.get("link", ())))

    def follow_up(self, task: str) -> Any:
        """Return a signature without arguments, for ``link``."""
        return self._app.tasks[task].si()

    def warm_up(self, tasks: int) -> None:
        """Have every process of the pool make what it makes once, and forget their marks."""
        self._publish(_ids(tasks), self._place.queue)
        self._wait_for(tasks)
        self._take_tally()

    def stage(self, tasks: int) -> None:
        """Publish tasks with keys of their own to a queue that the worker does not look into."""
        self._publish(_ids(tasks), self._place.staging_queue)

    def work_off(self, tasks: int) -> Tally:
        """Give the worker all that was staged, at one moment, and return what its pool did when it is at rest."""
        # A queue is a list under its name, and a worker that waits for it wakes up.
        self._redis.rename(self._place.staging_queue, self._place.queue)
        self._wait_for(tasks)
        return self._take_tally()

    def _take_tally(self) -> Tally:
        self._ended = 0
        return tally_of(self._place.folder, clear=True)

    def _publish(self, ids: Iterable[str], queue: str) -> None:
        task, target = self._app.tasks[CHARGE], queue_named(queue)
        with self._app.producer_pool.acquire() as producer:
            for order_id in ids:
                task.apply_async(({"id": order_id},), queue=target, producer=producer)

    def _wait_for(self, tasks: int) -> None:
        """Wait until so many more tasks have ended, and none waits for its acknowledgement."""
        ended = self._ended
        while ended < self._ended + tasks:
            ended = wait_for(partial(self._more_than, ended), PATIENCE, self._failure)
        wait_for(lambda: not self._redis.exists(self._place.unacknowledged), PATIENCE, self._failure)
        self._ended = ended

    def _more_than(self, seen: int) -> int:
        if self._process.returncode is not None:
            raise SpeedError(self._failure())
        if self._place.failure.exists():
            raise SpeedError(f"a task of {self._place.contender} failed: {self._place.failure.read_text('utf-8')}")
        count = tally_of(self._place.folder).count
        return count if count > seen else 0

    def _failure(self) -> str:
        return f"the worker of {self._place.contender} stands still; its log ends with\n{self._process.tail()}"


def new_order() -> str:
    """Return the id of an order that no table has seen."""
    return f"ord-{uuid4().hex}"


@contextmanager
def running(place: Place, *, processes: int) -> Iterator[Worker]:
    """Run a prefork worker for the length of a block; it consumes when the block begins.

    Args:
        place: where.
        processes: the size of its pool.
    """
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.speed.worker_app", "worker", "--pool", "prefork"]
    command += ["--concurrency", str(processes), "--hostname", f"{place.contender}@speed", "--queues", place.queue]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    log = place.folder / "worker.log"
    process = ChildProcess(command, log, os.environ | {VARIABLE: place.to_json()}, PROJECT_ROOT)
    try:
        wait_for(
            lambda: process.returncode is not None or (place.folder / "ready").exists(),
            START_SECONDS,
            lambda: f"the worker of {place.contender} is not ready:\n{process.tail()}",
        )
        with Redis.from_url(place.broker_url) as redis:
            yield Worker(place, process, redis)
    finally:
        process.kill()


def _ids(number: int) -> Iterator[str]:
    return (new_order() for _ in range(number))
