"""The demo's workload: drawn from a seed, and able to show what it is meant to show."""

import pytest

from idempotent_tasks.demo.plan import (
    FEWEST_PAYMENTS,
    KILL_AFTER_SECONDS,
    MOST_PAYMENTS,
    TIME_LIMIT_SECONDS,
    VISIBILITY_TIMEOUT_SECONDS,
    Fault,
    draw,
)


def test_same_seed_draws_the_same_workload() -> None:
    """Both phases, and two calls of the command, get the same payments; another seed gives others."""
    assert draw(40, 7) == draw(40, 7)
    assert draw(40, 7) != draw(40, 8)


@pytest.mark.parametrize("count", [FEWEST_PAYMENTS, 13, 40, MOST_PAYMENTS])
def test_every_fault_is_among_the_payments(count: int) -> None:
    """However few payments, each has a name of its own and every fault is among them."""
    payments = draw(count, 1)
    assert len({payment.name for payment in payments}) == count
    assert {payment.fault for payment in payments} == set(Fault)


def test_runs_are_as_long_as_their_faults_need() -> None:
    """Slow runs alone outlive the visibility timeout, none reaches the hard limit, and a kill meets its run."""
    for payment in draw(MOST_PAYMENTS, 3):
        assert (payment.seconds > VISIBILITY_TIMEOUT_SECONDS) == (payment.fault is Fault.SLOW)
        assert payment.seconds < TIME_LIMIT_SECONDS - 1
        if payment.fault in (Fault.CHILD_KILLED, Fault.WORKER_KILLED):
            assert payment.seconds > 2 * KILL_AFTER_SECONDS


def test_payments_published_twice_have_two_messages() -> None:
    """A second message never comes before the first, and some payment whose child is killed has one too."""
    payments = draw(MOST_PAYMENTS, 5)
    assert all(len(payment.publish_at) == 2 for payment in payments if payment.fault is Fault.TWICE)
    assert any(len(payment.publish_at) == 2 for payment in payments if payment.fault is Fault.CHILD_KILLED)
    assert all(list(payment.publish_at) == sorted(payment.publish_at) for payment in payments)
