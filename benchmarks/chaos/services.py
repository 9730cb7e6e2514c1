"""The servers of a run, from tests/testbed: one broker, one DynamoDB stand-in, the faults before it, and providers."""

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

from redis import Redis

from benchmarks import provider
from benchmarks.chaos.arena import Arena, Journal
from benchmarks.chaos.contenders import CONTENDERS
from benchmarks.chaos.faults import Faults
from benchmarks.chaos.history import What
from benchmarks.chaos.plan import Outage, Plan
from benchmarks.command import own_environment
from idempotent_tasks import DynamoDBStore
from tests.testbed import brokers
from tests.testbed.servers import ministack_server, postgresql_server, rabbitmq_server, redis_server

__all__ = ["Services"]

VISIBILITY_SECONDS: Final = 4
REGION: Final = "eu-west-1"
#: How long a provider takes for a request.
PROVIDER_SECONDS: Final = (0.1, 0.3)
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
    #: libpq's variables; empty where no effect is a row.
    postgresql: Mapping[str, str]
    #: In the names of everything of this run.
    token: str = field(default_factory=lambda: uuid4().hex[:6])
    #: By contender.
    _faults: dict[str, Faults] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    @contextmanager
    def started(cls, folder: Path, broker: str, *, dynamodb: bool, rows: bool) -> Iterator[Self]:
        """Run the servers for the length of a block.

        Args:
            folder: for their files.
            broker: ``redis`` or ``rabbitmq``.
            dynamodb: whether a contender needs one.
            rows: whether the effects are rows and items.

        Raises:
            MissingServiceError: one of them is not available.
        """
        with ExitStack() as stack:
            # Before TMPDIR names a folder that the user postgres may not enter.
            postgresql = stack.enter_context(postgresql_server()) if rows else {}
            stack.enter_context(own_environment(folder))
            redis_url = stack.enter_context(redis_server(folder))
            amqp_url = stack.enter_context(rabbitmq_server(folder)) if broker == "rabbitmq" else ""
            dynamodb_url = stack.enter_context(ministack_server(folder)) if dynamodb else ""
            services = cls(
                folder=folder,
                broker=broker,
                redis_url=redis_url,
                amqp_url=amqp_url,
                dynamodb_url=dynamodb_url,
                postgresql=postgresql,
            )
            stack.enter_context(services._stack)
            stack.callback(services._forget)
            yield services

    def arena(self, contender: str, plan: Plan, *, faults: bool, at_provider: bool) -> Arena:
        """Return an arena that nobody else uses, its table created.

        Args:
            contender: its name.
            plan: the run's.
            faults: whether it meets them on the way to its table.
            at_provider: whether its effects are at a provider.
        """
        prefix = f"chaos-{self.token}.{contender}"
        if self.broker == "redis":
            broker = brokers.redis(self.redis_url, f"{prefix}.").with_visibility(VISIBILITY_SECONDS)
        else:
            broker = brokers.rabbitmq(self.amqp_url)
        at_provider = at_provider or CONTENDERS[contender].has_provider
        endpoint = table = credentials_uri = ""
        if CONTENDERS[contender].has_table:
            table = f"{prefix}.records"
            self._create_table(table)
            endpoint = self.dynamodb_url
            if faults:
                before = self._stack.enter_context(Faults.before(endpoint, plan))
                self._faults[contender] = before
                endpoint, credentials_uri = before.endpoint, before.credentials_uri
        folder = self.folder / contender
        folder.mkdir(parents=True)
        arena = Arena(
            contender=contender,
            prefix=prefix,
            broker_url=broker.url,
            transport_options=broker.transport_options,
            result_backend=f"{self.redis_url}/{RESULTS}",
            lock_url=f"{self.redis_url}/{LOCKS}",
            endpoint=endpoint,
            region=REGION,
            table=table,
            credentials_uri=credentials_uri,
            provider_url=self._provider(Journal.of(folder), plan) if at_provider else "",
            database_url=self._database(prefix, plan) if self.postgresql else "",
            traced=plan.traced,
            directory=str(folder),
        )
        if arena.has_items:
            self._create_table(arena.items)
        return arena

    def committed_effects(self, arena: Arena) -> list[dict[str, Any]]:
        """Return the effects of an arena that are rows or items, once nobody writes any more; none where none are."""
        if not arena.database_url:
            return []
        from benchmarks.chaos import rows

        found = rows.committed_rows(arena.database_url)
        if arena.has_items:
            # Not by the arena's endpoint, which has faults.
            found += rows.committed_items(arena.items, region_name=REGION, endpoint_url=self.dynamodb_url)
        return found

    def _create_table(self, name: str) -> None:
        DynamoDBStore(name, region=REGION, endpoint_url=self.dynamodb_url).create_table()

    def _database(self, prefix: str, plan: Plan) -> str:
        """Create a database with the plan's orders, and return its URL."""
        from benchmarks.chaos import rows

        return self._stack.enter_context(rows.database(self.postgresql, prefix, [job.key for job in plan.jobs]))

    def _provider(self, journal: Journal, plan: Plan) -> str:
        """Run a provider that writes its charges into a journal, and return its URL."""
        chance = random.Random(f"{plan.seed} requests")

        def charged(charge: provider.Charge) -> None:
            journal.append(What.CHARGED, **charge)

        running = provider.running(lambda: chance.uniform(*PROVIDER_SECONDS), charged=charged)
        return self._stack.enter_context(running).url

    def begin_faults(self, names: Sequence[str], plan: Plan, stop: threading.Event) -> None:
        """Let these contenders meet the planned outages, troubles and rotations, counted from now."""
        met = [self._faults[name] for name in names if name in self._faults]
        for faults in met:
            faults.begin()
        if met and plan.outages:
            threading.Thread(target=_play_outages, args=(met, plan.outages, stop), daemon=True).start()

    def faults_played(self) -> dict[str, dict[str, int]]:
        """Return for each contender that meets faults how often it met which."""
        return {name: faults.played() for name, faults in self._faults.items()}

    def _forget(self) -> None:
        """Delete what this run left in Redis, which may be a server of the user's own."""
        for database in (0, RESULTS, LOCKS):
            with Redis.from_url(f"{self.redis_url}/{database}") as client:
                for key in client.scan_iter(f"*chaos-{self.token}.*"):
                    client.delete(key)


def _play_outages(met: Sequence[Faults], outages: tuple[Outage, ...], stop: threading.Event) -> None:
    elapsed = 0.0
    for outage in outages:
        if stop.wait(max(outage.at - elapsed, 0.0)):
            return
        with ExitStack() as down:
            for faults in met:
                down.enter_context(faults.outage())
            stop.wait(outage.seconds)
        elapsed = max(outage.at, elapsed) + outage.seconds
