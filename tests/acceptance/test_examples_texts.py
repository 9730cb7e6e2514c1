"""The texts example: a gateway that cannot be asked, workers killed while it sends, and a person who decides."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import pytest
from kombu import Connection

from tests.support.examples import Example, dynamodb_url
from tests.testbed.processes import ChildProcess, free_port
from tests.testbed.waiting import wait_for

#: A worker is killed, the broker delivers again, the key is parked.
PARKED_SECONDS = 60.0
SEND_SECONDS = 2.0
HELD = "86400"
SENT = "to +49-30-18: Your appointment is tomorrow."
WAITS = "rem-18 waits for a decision"
NOTED = "rem-18: sent to +49-30-18"
RESOLVE = "celery -A tasks idempotency resolve"
#: The decisions of the README, in its order.
DONE, RUN = 0, 1


@pytest.fixture
def texts(amqp_url: str, redis_url: str, roto: str, table: str, tmp_path: Path) -> Iterator[Example]:
    """The example in a queue of its own, its table made."""
    queue = f"texts-{uuid4().hex[:12]}"
    variables = {
        "BROKER_URL": amqp_url,
        "RESULT_URL": f"{redis_url}/11",
        "STORE_URL": dynamodb_url(roto, table),
        "QUEUE": queue,
        "GATEWAY_PORT": str(free_port()),
    }
    example = Example("texts", tmp_path, variables)
    example.run("celery -A tasks idempotency create-table")
    yield example
    with Connection(amqp_url) as connection:
        connection.default_channel.queue_delete(queue)
        connection.default_channel.exchange_delete(queue)


def gateway(texts: Example, **variables: object) -> AbstractContextManager[ChildProcess]:
    """Run the gateway, as slow as its variables say."""
    given = {name: str(value) for name, value in variables.items()}
    return texts.running("python gateway.py", "gateway on port", **given)


def worker(texts: Example) -> AbstractContextManager[ChildProcess]:
    """Run a worker, under a name that no other test's worker has on the same RabbitMQ."""
    return texts.running("celery -A tasks worker", r" ready\.", {"texts": texts.environment["QUEUE"]})


def lines(texts: Example, name: str) -> list[str]:
    """Return the lines of a file that the example writes."""
    path = texts.folder / name
    return path.read_text().splitlines() if path.exists() else []


def park(texts: Example, asked: ChildProcess, last: tuple[str, str]) -> None:
    """Publish a reminder, kill the worker when a log or file has a line, and have the next worker park the key."""
    name, line = last
    with texts.running("python send.py rem-18", "") as publisher:
        with worker(texts) as first:
            wait_for(
                lambda: line in (asked.log.read_text().splitlines() if name == "log" else lines(texts, name)),
                PARKED_SECONDS,
                lambda: f"the gateway is not asked:\n{first.tail()}",
            )
        with worker(texts) as second:
            wait_for(
                lambda: publisher.returncode is not None,
                PARKED_SECONDS,
                lambda: f"{publisher.tail()}\n{second.tail(100)}",
            )
            assert "parked tasks.remind[" in second.log.read_text()
    assert publisher.tail().splitlines()[-1] == WAITS


def test_a_reminder_is_sent(texts: Example) -> None:
    """Once, and noted."""
    with gateway(texts), worker(texts):
        assert texts.run("python send.py rem-17") == texts.shown("python send.py rem-17")
    assert lines(texts, "sent.txt") == texts.shown("cat sent.txt").splitlines()


@pytest.mark.parametrize(
    ("slow", "seconds", "last"),
    [
        ("SEND_SECONDS", SEND_SECONDS, ("log", "asked to send to +49-30-18")),
        ("ANSWER_SECONDS", HELD, ("sent.txt", SENT)),
    ],
)
def test_worker_killed_between_request_and_commit(
    texts: Example, slow: str, seconds: object, last: tuple[str, str]
) -> None:
    """The text is sent once and the key is parked; a person says that it is done, and what follows goes on."""
    with gateway(texts, **{slow: seconds}) as asked:
        park(texts, asked, last)
    assert lines(texts, "notes.txt") == []
    assert "tasks.remind" in texts.run("celery -A tasks idempotency list --state parked")
    assert "parked" in texts.run("celery -A tasks idempotency show")
    with worker(texts) as running:
        texts.run(RESOLVE, DONE)
        wait_for(lambda: lines(texts, "notes.txt"), PARKED_SECONDS, lambda: running.tail(100))
        # A second publication finds the outcome.
        assert texts.run("python send.py rem-18").splitlines() == [NOTED]
    assert lines(texts, "notes.txt") == [NOTED]
    assert lines(texts, "sent.txt") == [SENT]
    assert "tasks.remind" not in texts.run("celery -A tasks idempotency list --state parked")


def test_gateway_dead_before_it_sends(texts: Example) -> None:
    """Nothing was sent, nobody knows it but a person, who has the body run."""
    with gateway(texts, SEND_SECONDS=HELD) as asked:
        park(texts, asked, ("log", "asked to send to +49-30-18"))
    assert lines(texts, "sent.txt") == []
    with gateway(texts), worker(texts) as running:
        texts.run(RESOLVE, RUN)
        wait_for(lambda: lines(texts, "notes.txt"), PARKED_SECONDS, lambda: running.tail(100))
    assert lines(texts, "notes.txt") == [NOTED]
    assert lines(texts, "sent.txt") == [SENT]


def test_gateway_that_refuses(texts: Example) -> None:
    """Nothing was sent, and the body knows it: its retries send the text, and nobody is asked."""
    with gateway(texts, REFUSALS=2), worker(texts):
        assert texts.run("python send.py rem-17") == texts.shown("python send.py rem-17")
    assert lines(texts, "sent.txt") == texts.shown("cat sent.txt").splitlines()
