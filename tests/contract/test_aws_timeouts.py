"""Requests end within the time that their caller has left, on each way to a server that does not answer in time."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from idempotent_tasks import S3Results, StoreUnavailableError
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.core.retry import limited
from idempotent_tasks.stores.dynamodb.client import Connection
from idempotent_tasks.testing import FakeClock
from tests.support.canned import JSON, Asked, Canned, Said, page, the_key_asked
from tests.support.fast_path import ask
from tests.testbed.processes import free_port
from tests.testbed.wire import Wire, hold, wire_to

#: Seconds that a caller has, and in which it must have its error even on a busy machine.
LEFT_SECONDS = 0.3
LATE_SECONDS = 1.5
ADDRESS = f"s3://results/{'0' * 64}"


@pytest.fixture
def silent(canned: Canned) -> Iterator[threading.Event]:
    """The server answers only after this was set."""
    go_on = threading.Event()

    def answer(asked: Asked) -> Said:
        go_on.wait(30)
        return Said(page(the_key_asked(asked), JSON))

    canned.answer = answer
    yield go_on
    go_on.set()


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes to say that the store is unavailable, with `LEFT_SECONDS` to do it in."""
    clock = SystemClock()
    began = clock.monotonic()
    with limited(clock, LEFT_SECONDS), pytest.raises(StoreUnavailableError):
        call()
    return clock.monotonic() - began


def test_a_server_that_says_nothing(canned: Canned, session: boto3.Session, silent: threading.Event) -> None:
    """The time-out of the client's own is longer; the next request, which nobody limits, has that one again."""
    connection = Connection(endpoint_url=canned.endpoint, session=session, fast=False)
    silent.set()
    ask(connection)
    silent.clear()
    assert LEFT_SECONDS * 0.9 < seconds_of(lambda: ask(connection)) < LATE_SECONDS
    threading.Timer(2 * LEFT_SECONDS, silent.set).start()
    ask(connection)


@pytest.mark.usefixtures("silent")
def test_a_ready_made_client(canned: Canned, session: boto3.Session) -> None:
    """Its minute is shortened too, and it does not try again by itself."""
    client = session.client("dynamodb", endpoint_url=canned.endpoint)
    assert client.meta.config.read_timeout == 60
    assert seconds_of(lambda: ask(Connection(client=client))) < LATE_SECONDS
    assert len(canned.requests) == 1


@pytest.mark.usefixtures("silent")
def test_a_proxy(canned: Canned, session: boto3.Session) -> None:
    """A request through a proxy that says nothing is given up in time, too."""
    config = Config(proxies={"http": canned.endpoint})
    connection = Connection(endpoint_url="http://dynamodb.invalid:8000", session=session, config=config, fast=False)
    connection.client_of_this_process()
    assert seconds_of(lambda: ask(connection)) < LATE_SECONDS
    assert len(canned.requests) == 1


def test_a_time_out_of_the_users(canned: Canned, session: boto3.Session, silent: threading.Event) -> None:
    """One that is shorter than the time that is left decides."""
    connection = Connection(
        endpoint_url=canned.endpoint, session=session, fast=False, config=Config(read_timeout=LEFT_SECONDS)
    )
    clock = SystemClock()
    began = clock.monotonic()
    with limited(clock, 20), pytest.raises(StoreUnavailableError, match="ReadTimeoutError"):
        ask(connection)
    assert clock.monotonic() - began < LATE_SECONDS


def test_no_time_at_all(canned: Canned, session: boto3.Session, fast: bool) -> None:
    """Nothing is sent, by whichever way, and it is said why."""
    connection = Connection(endpoint_url=canned.endpoint, session=session, fast=fast)
    for _ in range(3):
        ask(connection)
        with limited(FakeClock(), 0), pytest.raises(StoreUnavailableError, match=r"was not sent: no time is left"):
            ask(connection)
    assert len(canned.requests) == 3


def test_no_time_once_the_request_is_signed(canned: Canned, session: boto3.Session) -> None:
    """The time may run out after the last look at it: that is no missing answer either."""
    clock = FakeClock()
    connection = Connection(endpoint_url=canned.endpoint, session=session, fast=False)
    events = connection.client_of_this_process().meta.events
    events.register("before-send.dynamodb", lambda **_: clock.advance(LEFT_SECONDS))
    with limited(clock, LEFT_SECONDS), pytest.raises(StoreUnavailableError, match=r"was not sent: no time is left"):
        ask(connection)
    assert not canned.requests


def test_no_time_before_the_fast_path_sends(canned: Canned, session: boto3.Session) -> None:
    """It looks once more, and says the same."""
    connection = Connection(endpoint_url=canned.endpoint, session=session)
    for _ in range(3):
        ask(connection)
    sent = len(canned.requests)
    with limited(Ticking(), 2), pytest.raises(StoreUnavailableError, match=r"was not sent: no time is left"):
        ask(connection)
    assert len(canned.requests) == sent


class BusySession(boto3.Session):
    """A session on a machine so busy that it takes a minute to load a client."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(region_name="eu-west-1")
        self.clock = clock

    def client(self, *args: Any, **kwargs: Any) -> Any:
        """Load a client."""
        self.clock.advance(60)
        return super().client(*args, **kwargs)


@pytest.mark.parametrize("answer_within", [None, LEFT_SECONDS])
def test_loading_a_client_takes_none_of_the_time(canned: Canned, answer_within: float | None) -> None:
    """A first request has as much of it as any other, whether its caller limits it or its store."""
    clock = FakeClock()
    connection = Connection(endpoint_url=canned.endpoint, session=BusySession(clock), clock=clock)
    connection.answer_within_seconds = answer_within
    with limited(clock, LEFT_SECONDS):
        ask(connection)
    assert len(canned.requests) == 1


class TestBucket:
    """Objects take longer than items."""

    @pytest.fixture
    def wire(self) -> Iterator[Wire]:
        """A proxy in front of nobody."""
        with wire_to(f"http://127.0.0.1:{free_port()}") as proxy:
            yield proxy

    @pytest.mark.parametrize(
        "call",
        [lambda results: results.put(b"data", 0), lambda results: results.get(ADDRESS)],
        ids=["put", "get"],
    )
    def test_a_server_that_says_nothing(
        self, wire: Wire, session: boto3.Session, call: Callable[[S3Results], Any]
    ) -> None:
        """An upload and a download end in time, and are not begun without any."""
        go_on = threading.Event()
        wire.break_all(hold(go_on))
        results = S3Results("results", session=session, endpoint_url=wire.endpoint)
        results.client()
        assert seconds_of(lambda: call(results)) < LATE_SECONDS
        go_on.set()
        wire.clear()
        with limited(FakeClock(), 0), pytest.raises(StoreUnavailableError, match="no time is left"):
            call(results)
        assert not wire.requests

    def test_an_object_that_takes_long(self, ministack: str, session: boto3.Session) -> None:
        """The time runs out between two parts of it, each of which was sent, or came, in time."""
        results = S3Results("timely", session=session, endpoint_url=ministack)
        results.client().create_bucket(
            Bucket="timely", CreateBucketConfiguration={"LocationConstraint": session.region_name}
        )
        data = bytes(10_000_000)
        address = results.put(data, 0)
        with limited(Ticking(), 20), pytest.raises(StoreUnavailableError):
            results.put(data, 0)
        with limited(Ticking(), 8), pytest.raises(StoreUnavailableError, match="the rest of the object"):
            results.get(address)
        assert results.get(address) == data


class Ticking(FakeClock):
    """A clock that goes on by a second whenever it is read."""

    def monotonic(self) -> float:
        """Return the next second."""
        self.advance(1)
        return super().monotonic()
