"""Stores for the contract suite, with a time that only the test moves; and DynamoDB stores behind a breakable wire."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any

import boto3
import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.testing import FakeClock, MemoryStore
from simulation.network import DirectClient, Service
from tests.conftest import REGION
from tests.support.canned import Canned, canned_server
from tests.support.powertools import Lambda
from tests.support.receipts import KINDS, Bank, DjangoBank, Place, SQLAlchemyBank, new_database
from tests.testbed.servers import FAST
from tests.testbed.wire import Answer, Forward, Wire, shift_date, show_time, wire_to
from tests.testbed.workers import cache_service_descriptions

cache_service_descriptions()

AnyStore = MemoryStore | DynamoDBStore
#: Makes another store over the test's table, with other arguments where given.
MakeStore = Callable[..., DynamoDBStore]
#: Makes a function under Powertools over the test's table.
MakeLambda = Callable[..., Lambda]
#: Makes banks of a kind over one database of the test's own.
MakeBank = Callable[..., Any]

STORES = ["memory", "ministack", "roto"]
#: The shipped store over the simulation's interpreter of its requests, too.
ALL_STORES = [*STORES, "simulated"]


class MovableClock(FakeClock):
    """The machine's clock plus an offset; waiting moves the offset, so that nothing waits."""

    def __init__(self) -> None:
        super().__init__(now=0.0)
        self.offset_seconds = 0

    def now(self) -> float:
        """Return the moved time in epoch seconds."""
        return time.time() + self.offset_seconds

    def monotonic(self) -> float:
        """Return moved monotonic seconds."""
        return time.monotonic() + self.offset_seconds

    def advance(self, seconds: float) -> None:
        """Move by whole seconds, rounded up, because a ``Date`` has no others."""
        self.offset_seconds += ceil(seconds)

    def shift(self, forward: Forward) -> Answer | None:
        """Move the server's ``Date`` as far as this clock: a fault for the wire."""
        return shift_date(self.offset_seconds)(forward)


@pytest.fixture
def clock() -> MovableClock:
    """A time that moves on both sides of the wire."""
    return MovableClock()


@pytest.fixture(scope="session")
def session() -> boto3.Session:
    """One boto3 session: it reads the service's description once."""
    return boto3.Session(region_name=REGION)


@pytest.fixture
def idempotency_clock() -> FakeClock:
    """The time of every store of the conformance suite; tomorrow, so that no server deletes what expires by it."""
    return FakeClock(now=int(time.time()) + 86_400.0)


@pytest.fixture(params=ALL_STORES)
def store(
    request: pytest.FixtureRequest, idempotency_clock: FakeClock, session: boto3.Session, table: str
) -> Iterator[AnyStore]:
    """Each implementation in turn, empty; the clock's time is also that of the server."""
    if request.param == "memory":
        yield MemoryStore(clock=idempotency_clock)
        return
    if request.param == "simulated":
        client = DirectClient(Service(idempotency_clock.now))
        yield DynamoDBStore(table, client=client, clock=idempotency_clock)
        return
    with wire_to(request.getfixturevalue(request.param)) as wire:
        wire.break_all(show_time(idempotency_clock.now))
        dynamodb = DynamoDBStore(table, endpoint_url=wire.endpoint, session=session, clock=idempotency_clock, fast=FAST)
        dynamodb.create_table()
        yield dynamodb


@pytest.fixture(params=STORES)
def racetrack(request: pytest.FixtureRequest, session: boto3.Session, table: str) -> AnyStore:
    """Each implementation in turn, empty, in real time and without a wire that would keep the racers apart."""
    if request.param == "memory":
        return MemoryStore()
    dynamodb = DynamoDBStore(table, endpoint_url=request.getfixturevalue(request.param), session=session, fast=FAST)
    dynamodb.create_table()
    return dynamodb


@pytest.fixture
def make_store(wire: Wire, session: boto3.Session, table: str) -> MakeStore:
    """Makes DynamoDB stores over this test's table behind the wire; the table does not exist yet."""
    usual = {"endpoint_url": wire.endpoint, "session": session, "fast": FAST}
    return lambda **given: DynamoDBStore(table, **{**usual, **given})


@pytest.fixture
def dynamodb(make_store: MakeStore, wire: Wire) -> DynamoDBStore:
    """A DynamoDB store over a table of its own; the requests that made the table are forgotten."""
    store = make_store()
    store.create_table()
    wire.clear()
    return store


@pytest.fixture(params=[True, False], ids=["fast", "boto3"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Whether the test's stores take the fast path to DynamoDB; boto3's own shows that what it says is true."""
    return bool(request.param)


@pytest.fixture
def canned() -> Iterator[Canned]:
    """A server that says what the test wrote."""
    with canned_server() as server:
        yield server


@pytest.fixture
def raw(dynamodb_endpoint: str, session: boto3.Session) -> Any:
    """A client of the same server past the wire and the library: what another program writes and sees."""
    return session.client("dynamodb", endpoint_url=dynamodb_endpoint)


@pytest.fixture
def make_lambda(dynamodb: DynamoDBStore, raw: Any) -> MakeLambda:
    """Makes functions under Powertools for AWS Lambda (Python) over the test's table."""
    return lambda **given: Lambda(dynamodb.table, raw, **given)


@pytest.fixture
def refusal_read(request: pytest.FixtureRequest) -> list[str]:
    """What a refusal costs beside itself: a read where the server returns no old item."""
    return ["GetItem"] if request.node.callspec.params["dynamodb_endpoint"] == "roto" else []


@pytest.fixture
def make_bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeBank]:
    """Makes banks of one kind over one database of the test's own; at another port where given."""
    with ExitStack() as stack:
        places: dict[str, Place] = {}

        def make(kind: str, port: int | None = None, **options: Any) -> Any:
            library, _, server = kind.partition("-")
            if server not in places:
                at = None if server == "sqlite" else request.getfixturevalue(server)
                places[server] = stack.enter_context(new_database(server, at, tmp_path))
            bank = (DjangoBank if library == "django" else SQLAlchemyBank)(places[server].at(port), **options)
            stack.callback(bank.close)
            return bank

        yield make


@pytest.fixture(params=KINDS)
def bank(request: pytest.FixtureRequest, make_bank: MakeBank) -> Bank:
    """A bank with its tables, on each database through each library."""
    bank: Bank = make_bank(request.param)
    bank.create_table()
    return bank


@pytest.fixture
def pool(bank: Bank) -> Iterator[Callable[..., "Future[Any]"]]:
    """Calls a function in another thread, which has a connection of its own and closes it."""
    with ThreadPoolExecutor(4) as executor:

        def submit(call: Callable[..., Any], *args: Any) -> "Future[Any]":
            def closing() -> Any:
                try:
                    return call(*args)
                finally:
                    if isinstance(bank, DjangoBank):
                        bank.close()

            return executor.submit(closing)

        yield submit
