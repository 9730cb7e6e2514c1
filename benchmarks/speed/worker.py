"""One real worker of a contender, from the side that sends it work and looks at what it takes of the machine."""

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from redis import Redis

from benchmarks.speed.bench import Place, SpeedError
from benchmarks.speed.contenders import CHARGE, build_app, queue_named
from tests.testbed.waiting import wait_for
from tests.testbed.workers import CeleryWorker

__all__ = ["Marks", "Worker", "new_order", "running"]

_FORM: Final = struct.Struct("ddq")
_SUFFIX: Final = ".marks"


class Marks:
    """The marks of one process; times are of its monotonic clock, which all processes of a machine share.

    Args:
        path: the file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_FORM.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORM.size)

    @classmethod
    def of_process(cls, folder: Path, pid: int) -> "Marks":
        """Open the marks of a process."""
        return cls(folder / f"{pid}{_SUFFIX}")

    def read(self) -> tuple[float, float, int]:
        """Return when the first task began and the last ended, in seconds, 0.0 for never; and how many ended."""
        first, last, count = _FORM.unpack(self._memory)
        return first, last, count

    def clear(self) -> None:
        """Begin again."""
        self._memory[:] = bytes(_FORM.size)

    def begun(self, at: float) -> None:
        """Mark that a task begins."""
        first, last, count = self.read()
        if not first:
            _FORM.pack_into(self._memory, 0, at, last, count)

    def ended(self, at: float) -> None:
        """Mark that a task ends."""
        first, _, count = self.read()
        _FORM.pack_into(self._memory, 0, first, at, count + 1)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()


@dataclass(frozen=True, slots=True)
class Tally:
    """What the processes of a pool did together."""

    count: int
    #: From the first begin to the last end.
    seconds: float


def tally_of(folder: Path, *, clear: bool = False) -> Tally:
    """Add up the marks in a folder, and clear them if told to, which is for a pool at rest."""
    read = []
    with ExitStack() as stack:
        for path in folder.glob(f"*{_SUFFIX}"):
            marks = Marks(path)
            stack.callback(marks.close)
            read.append(marks.read())
            if clear:
                marks.clear()
    return _added(read)


def _added(read: Iterable[tuple[float, float, int]]) -> Tally:
    busy = [marks for marks in read if marks[2]]
    if not busy:
        return Tally(0, 0.0)
    seconds = max(last for _, last, _ in busy) - min(first for first, _, _ in busy)
    return Tally(sum(count for _, _, count in busy), seconds)


#: Seconds in which a worker that still works ends another task.
WAIT_SECONDS: Final = 60.0


class Worker:
    """A running worker; see `running`."""

    def __init__(self, place: Place, process: CeleryWorker, redis: "Redis") -> None:
        self._place = place
        self._process = process
        self._redis = redis
        self._app = build_app(place)
        self._ended = 0

    @property
    def pid(self) -> int:
        """The id of its main process."""
        return self._process.process.pid

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
            ended = wait_for(partial(self._more_than, ended), WAIT_SECONDS, self._failure)
        wait_for(lambda: not self._redis.exists(self._place.unacknowledged), WAIT_SECONDS, self._failure)
        self._ended = ended

    def _more_than(self, seen: int) -> int:
        if self._process.process.returncode is not None:
            raise SpeedError(self._failure())
        if self._place.failure.exists():
            raise SpeedError(f"a task of {self._place.contender} failed: {self._place.failure.read_text('utf-8')}")
        count = tally_of(self._place.folder).count
        return count if count > seen else 0

    def _failure(self) -> str:
        return f"the worker of {self._place.contender} stands still; its log ends with\n{self._process.process.tail()}"


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
    process = CeleryWorker(
        "benchmarks.speed.worker_app",
        f"{place.contender}@speed",
        place.queue,
        place.folder,
        os.environ | place.environment(),
        concurrency=processes,
        loglevel="WARNING",
    )
    try:
        process.wait_until_ready((place.folder / "ready").exists)
        with Redis.from_url(place.broker_url) as redis:
            yield Worker(place, process, redis)
    finally:
        process.kill()


def _ids(number: int) -> Iterator[str]:
    return (new_order() for _ in range(number))
