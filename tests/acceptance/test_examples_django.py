"""The Django example: requests to its server, a real worker, and its own tests, on PostgreSQL and on SQLite."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from tests.support.examples import Example, dynamodb_url
from tests.testbed.processes import free_port
from tests.testbed.servers import connect_postgresql
from tests.testbed.waiting import wait_for

FULFILLED_SECONDS = 60.0
#: Its own tests start several workers, one after the other.
TESTS_SECONDS = 240.0


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The variables by which the example finds a database of its own."""
    if request.param == "sqlite":
        yield {"PGDATABASE": ""}
        return
    server: dict[str, str] = request.getfixturevalue("postgresql")
    name = f"shop_{uuid4().hex[:12]}"
    with connect_postgresql(server) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield server | {"PGDATABASE": name}
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def shop(database: dict[str, str], redis_url: str, roto: str, table: str, tmp_path: Path) -> Iterator[Example]:
    """The example in a queue of its own, its database and its table made."""
    broker, queue = f"{redis_url}/6", f"shop-{uuid4().hex[:12]}"
    variables = database | {
        "BROKER_URL": broker,
        "RESULT_URL": f"{redis_url}/7",
        "STORE_URL": dynamodb_url(roto, table),
        "QUEUE": queue,
    }
    example = Example("django", tmp_path, variables)
    example.run("python manage.py migrate")
    example.run("celery -A shop idempotency create-table")
    yield example
    with redis.Redis.from_url(broker) as client:
        client.delete(queue, f"_kombu.binding.{queue}")


def test_requests_that_are_sent_twice_have_one_effect(shop: Example) -> None:
    """The commands of the README: what the second request of each kind publishes replays stored results."""
    port = str(free_port())
    server = f"http://127.0.0.1:{port}"
    sent = ("localhost:8080/orders --data", "localhost:8080/webhooks", "localhost:8080/orders/ord-17/charges")
    asked, after_the_charge = "localhost:8080/orders/ord-17", 1
    with (
        shop.running("celery -A shop worker", r" ready\.") as worker,
        shop.running("python manage.py runserver", r"Starting (WSGI )?development server", {"8080": port}),
    ):
        for request in sent * 2:
            answer = shop.request(request, server)
            assert (answer.status_code, answer.text) == (202, shop.shown(f"curl {request}").strip())
        # Two parcels, the shipment, the mail, the payment and the charge, each twice; what follows the last two, once.
        wait_for(
            lambda: worker.log.read_text().count(" succeeded in ") == 14,
            FULFILLED_SECONDS,
            lambda: f"not all was done twice:\n{worker.tail()}",
        )
        answer = shop.request(asked, server, after_the_charge)
        assert answer.text == shop.shown(f"curl {asked}", after_the_charge).strip()
    assert len(list((shop.folder / "mails").iterdir())) == 3


@pytest.mark.timeout(TESTS_SECONDS + 60)
def test_its_own_tests_pass(shop: Example) -> None:
    """Django's test runner and a real worker, as the README runs them."""
    shop.run("QUEUE=shop-tests python manage.py test", timeout_seconds=TESTS_SECONDS)
