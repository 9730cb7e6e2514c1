"""The servers of a run, from tests/support: one broker, one DynamoDB stand-in, and bad weather in front of it."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

import pytest
from redis import Redis

from benchmarks.storm import contenders
from benchmarks.storm.arena import Arena
from benchmarks.storm.errors import StormError
from benchmarks.storm.plan import Outage, Plan
from idempotent_tasks import DynamoDBStore
from idempotent_tasks.demo.environment import own_environment
from tests.support import brokers
from tests.support.dynamodb import ministack_server
from tests.support.rabbitmq_server import rabbitmq_server
from tests.support.redis_server import redis_server
from tests.support.weather import Weather
from tests.support.wire import Wire, wire_to

__all__ = ["Services"]

VISIBILITY_SECONDS: Final = 4
REGION: Final = "eu-west-1"
#: Redis databases; the keys of every contender and run have prefixes of their own.
RESULTS, LOCKS = 1, 2


@dataclass(kw_only=True)
class Services:
    """Where the contenders of one run play."""

    folder: Path
    broker: str
    redis_url: str
    amqp_url: str
    dynamodb_url: str
    #: In the names of everything of this run.
    token: str = field(default_factory=lambda: uuid4().hex[:6])
    _wires: list[tuple[Wire, Weather]] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    @contextmanager
    def started(cls, folder: Path, broker: str, *, dynamodb: bool) -> Iterator[Self]:
        """Run the servers for the length of a block.

        Args:
            folder: for their files.
            broker: ``redis`` or ``rabbitmq``.
            dynamodb: whether a contender needs one.

        Raises:
            StormError: one of them is not available.
        """
        with ExitStack() as stack:
            stack.enter_context(own_environment(folder))
            try:
                redis_url = stack.enter_context(redis_server(folder))
                amqp_url = stack.enter_context(rabbitmq_server(folder)) if broker == "rabbitmq" else ""
                dynamodb_url = stack.enter_context(ministack_server(folder)) if dynamodb else ""
            except (pytest.skip.Exception, pytest.fail.Exception) as missing:
                raise StormError(str(missing)) from missing
            services = cls(
                folder=folder, broker=broker, redis_url=redis_url, amqp_url=amqp_url, dynamodb_url=dynamodb_url
            )
            stack.enter_context(services._stack)
            stack.callback(services._forget)
            yield services

    def arena(self, contender: str, plan: Plan, *, faults: bool) -> Arena:
        """Return an arena that nobody else uses, its table created."""
        prefix = f"storm-{self.token}.{contender}"
        if self.broker == "redis":
            broker = brokers.redis(self.redis_url, f"{prefix}.").with_visibility(VISIBILITY_SECONDS)
        else:
            broker = brokers.rabbitmq(self.amqp_url)
        endpoint = table = ""
        if contenders.load(contender).has_table:
            table = f"{prefix}.records"
            DynamoDBStore(table, region=REGION, endpoint_url=self.dynamodb_url).create_table()
            endpoint = self._through_weather(plan) if faults else self.dynamodb_url
        return Arena(
            contender=contender,
            prefix=prefix,
            broker_url=broker.url,
            transport_options=broker.transport_options,
            result_backend=f"{self.redis_url}/{RESULTS}",
            lock_url=f"{self.redis_url}/{LOCKS}",
            endpoint=endpoint,
            region=REGION,
            table=table,
            directory=str(self.folder / contender),
        )

    def begin_outages(self, outages: tuple[Outage, ...], stop: threading.Event) -> None:
        """Let every wire meet the planned outages, counted from now."""
        if self._wires and outages:
            threading.Thread(target=self._play_outages, args=(outages, stop), daemon=True).start()

    def weather(self) -> list[dict[str, int]]:
        """Return for each wire how many requests met which fault."""
        return [dict(weather.counts) for _, weather in self._wires]

    def _through_weather(self, plan: Plan) -> str:
        wire = self._stack.enter_context(wire_to(self.dynamodb_url))
        # Each contender has a wire of its own and the same sequence of faults on it.
        weather = Weather(plan.seed)
        wire.break_all(weather)
        self._wires.append((wire, weather))
        return wire.endpoint

    def _play_outages(self, outages: tuple[Outage, ...], stop: threading.Event) -> None:
        elapsed = 0.0
        for outage in outages:
            if stop.wait(max(outage.at - elapsed, 0.0)):
                return
            with ExitStack() as down:
                for wire, _ in self._wires:
                    down.enter_context(wire.outage())
                stop.wait(outage.seconds)
            elapsed = max(outage.at, elapsed) + outage.seconds

    def _forget(self) -> None:
        """Delete what this run left in Redis, which may be a server of the user's own."""
        for database in (0, RESULTS, LOCKS):
            with Redis.from_url(f"{self.redis_url}/{database}") as client:
                for key in client.scan_iter(f"*storm-{self.token}.*"):
                    client.delete(key)
