"""What every part is given: the size of the run, servers, started when first asked for, and places to measure in."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

from redis import Redis

from benchmarks.command import own_environment
from benchmarks.speed.calls import store_at
from tests.testbed.servers import ministack_server, rabbitmq_server, redis_server, roto_server
from tests.testbed.workers import WorkerConfig

__all__ = ["Bench", "Place", "SpeedError"]


class SpeedError(Exception):
    """A part cannot be measured here; the text says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Place(WorkerConfig):
    """All that a worker process must know; its names belong to one contender in one round."""

    contender: str
    #: Begins the names of the queues and of all keys in Redis and in the table.
    prefix: str
    broker_url: str
    result_backend: str
    #: The DynamoDB endpoint and table.
    endpoint: str
    table: str
    #: An empty folder for the marks and the log.
    directory: str
    #: Kombu's options, where the broker is not Redis.
    options: dict[str, Any] = field(default_factory=dict)
    #: Arguments of the queue's declaration.
    queue_arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder as a path."""
        return Path(self.directory)

    @property
    def failure(self) -> Path:
        """The file that is there once a task has failed."""
        return self.folder / "failure"

    @property
    def queue(self) -> str:
        """The name of the queue that the worker consumes."""
        return f"{self.prefix}.queue"

    @property
    def staging_queue(self) -> str:
        """The name of the queue that collects messages before the worker may have them."""
        return f"{self.prefix}.staged"

    @property
    def unacknowledged(self) -> str:
        """The Redis key of the messages that were delivered and not yet acknowledged."""
        return f"{self.prefix}.unacked"

    @property
    def transport_options(self) -> dict[str, Any]:
        """Kombu's options: keys of its own, because a server may have other users."""
        if not self.broker_url.startswith("redis"):
            return self.options
        return {
            "unacked_key": self.unacknowledged,
            "unacked_index_key": f"{self.unacknowledged}.index",
            "unacked_mutex_key": f"{self.unacknowledged}.mutex",
        }


#: Redis databases.
BROKER, RESULTS = 0, 1
_numbers: Final = itertools.count()


@dataclass(kw_only=True)
class Bench:
    """Where and how much is measured in one run."""

    folder: Path
    rounds: int
    #: Whether everything is small, to be quick rather than exact.
    quick: bool
    #: Tells the user something.
    say: Callable[[str], None]
    #: Where pyperf's own file goes, for its other commands.
    pyperf: Path | None = None
    _token: str = field(default_factory=lambda: uuid4().hex[:6])
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, *, rounds: int, quick: bool, say: Callable[[str], None], pyperf: Path | None = None
    ) -> Iterator[Self]:
        """Have the servers that were asked for run until the end of a block."""
        with own_environment(folder):
            bench = cls(folder=folder, rounds=rounds, quick=quick, say=say, pyperf=pyperf)
            with bench._stack:
                yield bench

    @cached_property
    def redis_url(self) -> str:
        """A Redis-protocol server, as a URL without a database number."""
        url = self._stack.enter_context(redis_server(self.folder))
        self._stack.callback(self._forget, url)
        return url

    @cached_property
    def amqp_url(self) -> str:
        """A RabbitMQ server."""
        return self._stack.enter_context(rabbitmq_server(self.folder))

    @cached_property
    def roto_url(self) -> str:
        """The DynamoDB stand-in that takes the least of the machine for itself."""
        return self._stack.enter_context(roto_server(self.folder))

    @cached_property
    def ministack_url(self) -> str:
        """The DynamoDB stand-in that answers a refusal as DynamoDB does, with the item."""
        return self._stack.enter_context(ministack_server(self.folder))

    def size(self, full: int, quick: int) -> int:
        """Return how many there are in a full run or a quick one."""
        return quick if self.quick else full

    def table(self, endpoint: str) -> str:
        """Create a table of this run's own, and return its name."""
        name = f"speed-{self._token}-{next(_numbers)}"
        store_at(endpoint, name, stock=True).create_table()
        return name

    def place(self, contender: str, endpoint: str, table: str) -> Place:
        """Return a place that nobody else uses."""
        prefix = f"speed-{self._token}.{next(_numbers)}.{contender}"
        directory = self.folder / prefix
        directory.mkdir()
        return Place(
            contender=contender,
            prefix=prefix,
            broker_url=f"{self.redis_url}/{BROKER}",
            result_backend=f"{self.redis_url}/{RESULTS}",
            endpoint=endpoint,
            table=table,
            directory=str(directory),
        )

    def _forget(self, url: str) -> None:
        """Delete what this run left in Redis, which may be a server of the user's own."""
        for database in (BROKER, RESULTS):
            with Redis.from_url(f"{url}/{database}") as client:
                for key in client.scan_iter(f"*speed-{self._token}.*"):
                    client.delete(key)
