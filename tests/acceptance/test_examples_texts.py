"""The texts example: a gateway that cannot be asked, workers killed while it sends, and a person who decides."""

from contextlib import AbstractContextManager

import pytest

from tests.support.examples import Example, OnRabbitMQ
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
def texts(on_rabbitmq: OnRabbitMQ) -> Example:
    """The example, with a gateway on a port of its own."""
    return on_rabbitmq("texts", 11, GATEWAY_PORT=str(free_port()))


def gateway(texts: Example, **variables: object) -> AbstractContextManager[ChildProcess]:
    """Run the gateway, as slow as its variables say."""
    given = {name: str(value) for name, value in variables.items()}
    return texts.running("python gateway.py", "gateway on port", **given)


def park(texts: Example, asked: ChildProcess, last: tuple[str, str]) -> None:
    """Publish a reminder, kill the worker when a log or file has a line, and have the next worker park the key."""
    name, line = last
    with texts.running("python send.py rem-18", "") as publisher:
        with texts.running_worker() as first:
            wait_for(
                lambda: line in (asked.log.read_text().splitlines() if name == "log" else texts.lines(name)),
                PARKED_SECONDS,
                lambda: f"the gateway is not asked:\n{first.tail()}",
            )
        with texts.running_worker() as second:
            wait_for(
                lambda: publisher.returncode is not None,
                PARKED_SECONDS,
                lambda: f"{publisher.tail()}\n{second.tail(100)}",
            )
            assert "parked tasks.remind[" in second.log.read_text()
    assert publisher.tail().splitlines()[-1] == WAITS


def test_a_reminder_is_sent(texts: Example) -> None:
    """Once, and noted."""
    with gateway(texts), texts.running_worker():
        assert texts.run("python send.py rem-17") == texts.shown("python send.py rem-17")
    assert texts.lines("sent.txt") == texts.shown("cat sent.txt").splitlines()


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
    assert texts.lines("notes.txt") == []
    assert "tasks.remind" in texts.run("celery -A tasks idempotency list --state parked")
    assert "parked" in texts.run("celery -A tasks idempotency show")
    with texts.running_worker() as running:
        texts.run(RESOLVE, DONE)
        wait_for(lambda: texts.lines("notes.txt"), PARKED_SECONDS, lambda: running.tail(100))
        # A second publication finds the outcome.
        assert texts.run("python send.py rem-18").splitlines() == [NOTED]
    assert texts.lines("notes.txt") == [NOTED]
    assert texts.lines("sent.txt") == [SENT]
    assert "tasks.remind" not in texts.run("celery -A tasks idempotency list --state parked")


def test_gateway_dead_before_it_sends(texts: Example) -> None:
    """Nothing was sent, nobody knows it but a person, who has the body run."""
    with gateway(texts, SEND_SECONDS=HELD) as asked:
        park(texts, asked, ("log", "asked to send to +49-30-18"))
    assert texts.lines("sent.txt") == []
    with gateway(texts), texts.running_worker() as running:
        texts.run(RESOLVE, RUN)
        wait_for(lambda: texts.lines("notes.txt"), PARKED_SECONDS, lambda: running.tail(100))
    assert texts.lines("notes.txt") == [NOTED]
    assert texts.lines("sent.txt") == [SENT]


def test_gateway_that_refuses(texts: Example) -> None:
    """Nothing was sent, and the body knows it: its retries send the text, and nobody is asked."""
    with gateway(texts, REFUSALS=2), texts.running_worker():
        assert texts.run("python send.py rem-17") == texts.shown("python send.py rem-17")
    assert texts.lines("sent.txt") == texts.shown("cat sent.txt").splitlines()
