"""The accounts example: FastAPI and SQLAlchemy on PostgreSQL, workers killed before and after a deposit's commit."""

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import redis

from tests.support.examples import RESULT_SECONDS, Example, dynamodb_url, outcome
from tests.support.receipts import new_database
from tests.testbed.waiting import wait_for

WORKER = "celery -A tasks worker"
READY = r" ready\."
POST = "localhost:8080/accounts/ann/deposits"
#: The deposits of the README, in its order: the same key with another amount is the second.
FIRST, CONFLICTING, KILLED = range(3)
#: After which Redis delivers a message again that nobody has acknowledged.
VISIBILITY_SECONDS = 5
HELD = "86400"


@pytest.fixture
def accounts(postgresql: dict[str, str], redis_url: str, roto: str, table: str, tmp_path: Path) -> Iterator[Example]:
    """The example in a queue and a database of its own; Redis delivers again after 5 s instead of 60 s."""
    broker, queue = f"{redis_url}/12", f"accounts-{uuid4().hex[:12]}"
    with new_database("postgresql", postgresql, tmp_path) as database:
        variables = {
            "BROKER_URL": broker,
            "RESULT_URL": f"{redis_url}/13",
            "STORE_URL": dynamodb_url(roto, table),
            "DATABASE_URL": database.url,
            "QUEUE": queue,
            "VISIBILITY_TIMEOUT": str(VISIBILITY_SECONDS),
        }
        example = Example("accounts", tmp_path, variables)
        example.run("celery -A tasks idempotency create-table")
        example.run("python database.py")
        yield example
    with redis.Redis.from_url(broker) as client:
        client.delete(queue, f"_kombu.binding.{queue}")


@pytest.fixture
def api(accounts: Example) -> Iterator[str]:
    """The URL of the example's API."""
    with accounts.serving() as url:
        yield url


def balance(api: str) -> int:
    """Return the balance of the account."""
    cents: int = httpx.get(f"{api}/accounts/ann").json()["balance_cents"]
    return cents


def wait_for_notices(accounts: Example, expected: list[str]) -> None:
    """Return when the customer was told so much; fail if more comes."""
    wait_for(
        lambda: len(accounts.lines("notices.txt")) >= len(expected),
        RESULT_SECONDS,
        lambda: f"told: {accounts.lines('notices.txt')}",
    )
    assert accounts.lines("notices.txt") == expected


def test_two_posts_of_one_key_are_one_deposit(accounts: Example, api: str) -> None:
    """Both task ids get the one number; the key with another amount is a conflict; no key is refused."""
    with accounts.running(WORKER, READY):
        posted = [accounts.request(POST, api, FIRST) for _ in range(2)]
        assert posted[0].json()["task_id"] != posted[1].json()["task_id"]
        first, second = (outcome(each, f"{api}/deposits") for each in posted)
        assert first.status_code == second.status_code == 200
        assert first.json()["number"] == second.json()["number"]
        assert outcome(accounts.request(POST, api, CONFLICTING), f"{api}/deposits").status_code == 409
        wait_for_notices(accounts, accounts.shown("cat notices.txt").splitlines())
    asked, after_the_post = "localhost:8080/accounts/ann", 1
    shown = accounts.shown(f"curl {asked}", after_the_post).strip()
    assert accounts.request(asked, api, after_the_post).text == shown
    assert httpx.post(f"{api}/accounts/ann/deposits", json={"cents": 1}).status_code == 422


def test_worker_killed_before_the_commit(accounts: Example, api: str) -> None:
    """The rows are rolled back, and the next worker writes them."""
    with accounts.running(WORKER, READY, DEPOSIT_SECONDS=HELD) as worker:
        posted = accounts.request(POST, api, KILLED)
        worker.wait_until(lambda: "deposits 1300 cents for ann" in worker.log.read_text(), RESULT_SECONDS)
    assert balance(api) == 0
    # kombu looks for messages to deliver again when a worker connects, and then only every 100 s.
    visible_at = time.monotonic() + VISIBILITY_SECONDS
    wait_for(lambda: time.monotonic() > visible_at, RESULT_SECONDS, "the message is not visible again")
    with accounts.running(WORKER, READY):
        assert outcome(posted, f"{api}/deposits").json()["state"] == "SUCCESS"
        wait_for_notices(accounts, ["ann: 1300 cents have arrived"])
    assert balance(api) == 1300


def test_process_killed_after_the_commit(accounts: Example, api: str) -> None:
    """The next process finds the receipt: its body does not run, and the notice is published."""
    with accounts.running("celery -A dying worker", READY) as worker:
        posted = accounts.request(POST, api, KILLED)
        assert outcome(posted, f"{api}/deposits").json()["state"] == "SUCCESS"
        wait_for_notices(accounts, ["ann: 1300 cents have arrived"])
        log = worker.log.read_text()
    assert "exited with 'signal 9 (SIGKILL)'" in log
    assert log.count("deposits 1300 cents for ann") == 1
    assert balance(api) == 1300


def test_its_own_tests_pass(tmp_path: Path) -> None:
    """The command of the README; nothing fails, and nothing is left out."""
    last = Example("accounts", tmp_path, {"PYTEST_ADDOPTS": "-p no:cacheprovider"}).run("python -m pytest")
    assert " passed in " in last.splitlines()[-1]
    assert "skipped" not in last.splitlines()[-1]
