"""The Django example: forms to its server, a real worker, and its own tests."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from tests.support.examples import Example, dynamodb_url
from tests.testbed.processes import free_port
from tests.testbed.waiting import wait_for

CONFIRMED_SECONDS = 60.0


@pytest.fixture
def shop(redis_url: str, roto: str, table: str, tmp_path: Path) -> Iterator[Example]:
    """The example in a queue of its own, its database and its table made."""
    broker, queue = f"{redis_url}/6", f"shop-{uuid4().hex[:12]}"
    variables = {
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


def test_form_that_is_sent_twice_has_one_mail(shop: Example) -> None:
    """The commands of the README: the second form is the same order, and its message makes no second mail."""
    port = str(free_port())
    server = f"http://127.0.0.1:{port}"
    with (
        shop.running("celery -A shop worker", r" ready\.") as worker,
        shop.running("python manage.py runserver", "Starting development server", {"8080": port}),
    ):
        for _ in range(2):
            answer = shop.request("localhost:8080/orders --data", server)
            assert (answer.status_code, answer.text) == (202, shop.shown("curl localhost:8080/orders --data").strip())
        wait_for(
            lambda: worker.log.read_text().count(" succeeded in ") == 2,
            CONFIRMED_SECONDS,
            lambda: f"not confirmed twice:\n{worker.tail()}",
        )
        asked = shop.request("localhost:8080/orders/ord-17", server)
        assert asked.text == shop.shown("curl localhost:8080/orders/ord-17").strip()
    assert len(list((shop.folder / "mails").iterdir())) == 1


def test_its_own_tests_pass(shop: Example) -> None:
    """Django's test client and a real worker, as the README runs them."""
    shop.run("QUEUE=shop-tests python manage.py test")
