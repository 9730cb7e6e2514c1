"""The payouts example: a bank that can be asked, and workers killed between the request and the commit."""

from contextlib import AbstractContextManager

import pytest

from tests.support.examples import Example, OnRabbitMQ
from tests.testbed.processes import ChildProcess, free_port
from tests.testbed.waiting import wait_for

#: A worker is killed, the broker delivers again, the key settles, the bank is asked.
PAID_SECONDS = 80.0
#: The bank's transfer after its client is dead, and for how long nobody asks.
TRANSFER_SECONDS, SETTLE_SECONDS = 3.0, 6.0
HELD = "86400"
ASKED, TRANSFERRED, LOOKED_UP = "asked for out-18", "transferred 1300 for out-18", "looks up out-18"


@pytest.fixture
def payouts(on_rabbitmq: OnRabbitMQ) -> Example:
    """The example, with a bank on a port of its own."""
    return on_rabbitmq("payouts", 9, BANK_PORT=str(free_port()), SETTLE_SECONDS=str(SETTLE_SECONDS))


def bank(payouts: Example, **variables: object) -> AbstractContextManager[ChildProcess]:
    """Run the bank, as slow as its variables say."""
    given = {name: str(value) for name, value in variables.items()}
    return payouts.running("python bank.py", "bank on port", **given)


def publisher(payouts: Example) -> AbstractContextManager[ChildProcess]:
    """Publish the payout that the README kills, and wait for its result in the background."""
    return payouts.running("python pay.py out-18", "")


def statement(payouts: Example) -> list[str]:
    """Return what the bank has noted, in order."""
    return payouts.lines("statement.txt")


def wait_for_statement(payouts: Example, line: str, process: ChildProcess) -> None:
    """Return when the bank has noted this."""
    wait_for(
        lambda: line in statement(payouts),
        PAID_SECONDS,
        lambda: f"no {line!r} in {statement(payouts)}\n{process.tail()}",
    )


def wait_for_transfer(paying: ChildProcess, running: ChildProcess) -> None:
    """Return when the publisher has printed the transfer."""
    wait_for(lambda: paying.returncode is not None, PAID_SECONDS, lambda: f"no transfer:\n{running.tail(100)}")
    assert "{'reference': 'out-18', 'cents': 1300}" in paying.tail().splitlines()


def test_a_payout_published_twice(payouts: Example) -> None:
    """The second gets the stored result, and the bank hears nothing of it."""
    with bank(payouts), payouts.running_worker():
        for number in range(2):
            assert payouts.run("python pay.py out-17", number) == payouts.shown("python pay.py out-17", number)
    assert statement(payouts) == payouts.shown("cat").splitlines()


@pytest.mark.parametrize(
    ("slow", "seconds", "last"), [("TRANSFER_SECONDS", TRANSFER_SECONDS, ASKED), ("ANSWER_SECONDS", HELD, TRANSFERRED)]
)
def test_worker_killed_between_request_and_commit(payouts: Example, slow: str, seconds: object, last: str) -> None:
    """Before the transfer, which the bank makes all the same, or after it: the next run asks, and the bank knows."""
    with bank(payouts, **{slow: seconds}), publisher(payouts) as paying:
        with payouts.running_worker() as first:
            wait_for_statement(payouts, last, first)
        with payouts.running_worker() as second:
            wait_for_transfer(paying, second)
            assert "recovered tasks.pay_out[" in second.log.read_text()
    assert statement(payouts) == [ASKED, TRANSFERRED, LOOKED_UP]


def test_worker_killed_while_it_asks(payouts: Example) -> None:
    """The one after it asks again."""
    with publisher(payouts) as paying:
        with bank(payouts, ANSWER_SECONDS=HELD), payouts.running_worker() as first:
            wait_for_statement(payouts, TRANSFERRED, first)
        with bank(payouts, LOOKUP_SECONDS=HELD), payouts.running_worker() as second:
            wait_for_statement(payouts, LOOKED_UP, second)
        with bank(payouts), payouts.running_worker() as third:
            wait_for_transfer(paying, third)
    assert statement(payouts) == [ASKED, TRANSFERRED, LOOKED_UP, LOOKED_UP]


def test_bank_dead_before_it_transfers(payouts: Example) -> None:
    """The next run asks, the bank knows of nothing, and so the body runs."""
    with publisher(payouts) as paying:
        with bank(payouts, TRANSFER_SECONDS=HELD), payouts.running_worker() as first:
            wait_for_statement(payouts, ASKED, first)
        with bank(payouts), payouts.running_worker() as second:
            wait_for_transfer(paying, second)
    assert statement(payouts) == [ASKED, LOOKED_UP, ASKED, TRANSFERRED]


def test_body_that_raises_after_its_effect(payouts: Example) -> None:
    """Its retry asks the bank instead of transferring again."""
    with (
        bank(payouts, ANSWER_SECONDS=TRANSFER_SECONDS),
        payouts.running_worker(TIMEOUT_SECONDS="1") as running,
        publisher(payouts) as paying,
    ):
        wait_for_transfer(paying, running)
        assert "TimeoutError" in running.log.read_text()
    assert statement(payouts) == [ASKED, TRANSFERRED, LOOKED_UP]


def test_bank_that_refuses_the_connection(payouts: Example) -> None:
    """Nothing has left: the retry neither waits for `settle` nor asks."""
    with payouts.running_worker(SETTLE_SECONDS=HELD) as running, publisher(payouts) as paying:
        running.wait_until(lambda: "Retry in" in running.log.read_text(), PAID_SECONDS)
        with bank(payouts):
            wait_for_transfer(paying, running)
    assert statement(payouts) == [ASKED, TRANSFERRED]


def test_settle_that_is_too_short(payouts: Example) -> None:
    """The bank is asked while a dead run's request is on its way, and then to transfer again: what `settle` is for."""
    with bank(payouts, TRANSFER_SECONDS=HELD), publisher(payouts):
        with payouts.running_worker(SETTLE_SECONDS="0.1") as first:
            wait_for_statement(payouts, ASKED, first)
        with payouts.running_worker(SETTLE_SECONDS="0.1") as second:
            wait_for(lambda: statement(payouts).count(ASKED) == 2, PAID_SECONDS, second.tail)
    assert statement(payouts) == [ASKED, LOOKED_UP, ASKED]
