"""The payments example: FastAPI, a worker on SQS, a worker killed while it charges."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.examples import RESULT_SECONDS, Example, dynamodb_url, outcome
from tests.testbed.servers import roto_server
from tests.testbed.waiting import wait_for

WORKER = "celery -A tasks worker"
READY = r" ready\."


@pytest.fixture
def payments(redis_url: str, table: str, tmp_path: Path) -> Iterator[Example]:
    """The example on servers of its own, its table made; SQS delivers again after 5 s instead of 60 s."""
    with roto_server(tmp_path) as endpoint:
        variables = {
            "BROKER_URL": f"sqs://testing:testing@{urlsplit(endpoint).netloc}",
            "RESULT_URL": f"{redis_url}/3",
            "STORE_URL": dynamodb_url(endpoint, table),
            "VISIBILITY_TIMEOUT": "5",
        }
        example = Example("payments", tmp_path, variables)
        example.run("celery -A tasks idempotency create-table")
        yield example


@pytest.fixture
def api(payments: Example) -> Iterator[str]:
    """The URL of the example's API."""
    with payments.serving() as url:
        yield url


def test_two_posts_of_one_key_are_one_charge(payments: Example, api: str) -> None:
    """Both task ids get the one receipt; the key with another amount is a conflict; a key that is none is refused."""
    with payments.running(WORKER, READY):
        accepted = [payments.request("localhost:8080/payments", api) for _ in range(2)]
        assert accepted[0].json()["task_id"] != accepted[1].json()["task_id"]
        outcomes = [outcome(each, f"{api}/payments") for each in accepted]
        assert {each.status_code for each in outcomes} == {200}
        assert [each.json()["receipt"] for each in outcomes] == [
            {"customer": "ann", "amount_cents": 4200, "receipt": 1}
        ] * 2
        assert payments.run("python provider.py") == payments.shown("python provider.py")
        assert outcome(payments.request("localhost:8080/payments", api, number=1), f"{api}/payments").status_code == 409
        assert payments.run("python provider.py") == payments.shown("python provider.py")
    payment = {"customer": "ann", "amount_cents": 1}
    refused = httpx.post(f"{api}/payments", json=payment, headers={"Idempotency-Key": ""})
    assert refused.status_code == 400
    assert "idempotency_key is empty" in refused.json()["detail"]


@pytest.mark.parametrize(("slow", "charges"), [("CHARGE_SECONDS", 0), ("ANSWER_SECONDS", 1)])
def test_worker_killed_while_it_charges(payments: Example, api: str, slow: str, charges: int) -> None:
    """Before or after the charge: the next worker asks again, with the same key and a larger fence, for one charge."""
    payments.environment[slow] = "60"
    with payments.running(WORKER, READY) as worker:
        accepted = payments.request("localhost:8080/payments", api)
        wait_for(
            lambda: (len(rows(payments, "requests")), len(rows(payments, "charges"))) == (1, charges),
            RESULT_SECONDS,
            lambda: f"nobody charges:\n{worker.tail()}",
        )
    del payments.environment[slow]
    with payments.running(WORKER, READY):
        assert outcome(accepted, f"{api}/payments").json()["receipt"]["receipt"] == 1
    (first_key, first_fence), (second_key, second_fence) = rows(payments, "requests")
    assert first_key == second_key
    assert first_fence < second_fence
    assert len(rows(payments, "charges")) == 1


def rows(payments: Example, table: str) -> list[tuple[Any, ...]]:
    """Return a table of the processor's books, oldest first."""
    payments.run("python provider.py")  # makes the books where nobody did yet
    with closing(sqlite3.connect(payments.folder / "books.sqlite")) as books:
        return books.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()
