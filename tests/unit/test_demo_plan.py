"""The demo's workload: drawn from a seed, and able to show what it is meant to show."""

import pytest

from idempotent_tasks.demo.plan import (
    FEWEST_PAYMENTS,
    MOST_PAYMENTS,
    STRIKE_AFTER_SECONDS,
    TIME_LIMIT_SECONDS,
    VISIBILITY_TIMEOUT_SECONDS,
    Fate,
    draw,
)


def test_same_seed_draws_the_same_workload() -> None:
    """Both phases, and two calls of the command, get the same payments; another seed gives others."""
    assert draw(40, 7) == draw(40, 7)
    assert draw(40, 7) != draw(40, 8)


@pytest.mark.parametrize("count", [FEWEST_PAYMENTS, 13, 40, MOST_PAYMENTS])
def test_every_fate_befalls_some_payment(count: int) -> None:
    """However few payments, each of them has a name of its own and every fate is among them."""
    payments = draw(count, 1)
    assert len({payment.name for payment in payments}) == count
    assert {payment.fate for payment in payments} == set(Fate)


def test_bodies_are_as_long_as_their_fates_ask_for() -> None:
    """Slow bodies alone outlive the visibility timeout, none reaches the hard limit, the strike finds its body."""
    for payment in draw(MOST_PAYMENTS, 3):
        assert (payment.seconds > VISIBILITY_TIMEOUT_SECONDS) == (payment.fate is Fate.SLOW)
        assert payment.seconds < TIME_LIMIT_SECONDS - 1
        if payment.fate in (Fate.CHILD_KILLED, Fate.WORKER_KILLED):
            assert payment.seconds > 2 * STRIKE_AFTER_SECONDS


def test_payments_published_twice_have_two_messages() -> None:
    """A second message never comes before the first, and some doomed payment has one too."""
    payments = draw(MOST_PAYMENTS, 5)
    assert all(len(payment.publish_at) == 2 for payment in payments if payment.fate is Fate.TWICE)
    assert any(len(payment.publish_at) == 2 for payment in payments if payment.fate is Fate.CHILD_KILLED)
    assert all(list(payment.publish_at) == sorted(payment.publish_at) for payment in payments)
