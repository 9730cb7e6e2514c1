"""The provider that benchmarks charge at, over real connections: it charges whatever becomes of a client."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import pytest

from benchmarks import provider
from benchmarks.provider import Charge, Provider
from tests.testbed.waiting import wait_for

SECONDS = 20.0


@contextmanager
def held() -> Iterator[tuple[Provider, Event]]:
    """Run a provider whose charges are made when an event is set."""
    gate = Event()

    def seconds() -> float:
        assert gate.wait(SECONDS), "nobody opened the gate"
        return 0.0

    with provider.running(seconds) as running:
        try:
            yield running, gate
        finally:
            gate.set()


def test_charge_is_made_although_the_client_gave_up() -> None:
    """A time-out says nothing about the charge: it is not made yet when the client raises, and is made afterwards."""
    with held() as (running, gate):
        with pytest.raises(OSError, match="timed out"):
            provider.charge(running.url, "o 1", {"value": "a"}, timeout_seconds=0.1)
        assert provider.ask(running.url, "o 1") == []
        gate.set()
        wait_for(lambda: running.charges("o 1") == [{"value": "a"}], SECONDS, "the charge is not made")
        assert provider.ask(running.url, "o 1") == [{"value": "a"}]
        assert provider.ask(running.url, "o 2") == []


def test_requests_with_one_key_are_one_charge() -> None:
    """The second gets the first's answer, also while the first is not carried out yet; without a key both count."""
    made: list[Charge] = []
    with held() as (running, gate), ThreadPoolExecutor(2) as threads:
        running._charged = made.append
        first, second = (
            threads.submit(provider.charge, running.url, "o1", {"value": value}, key="k") for value in ("a", "b")
        )
        gate.set()
        assert first.result(SECONDS) == second.result(SECONDS) == made[0]
        assert running.charges("o1") == made
        for value in ("c", "d"):
            assert provider.charge(running.url, "o2", {"value": value}) == {"value": value}
        assert [charge["value"] for charge in made[1:]] == ["c", "d"]


def test_only_the_first_request_of_an_order_is_answered_late() -> None:
    """It times out with its charge made; the next one is answered in time."""
    with provider.running(lambda: 0.0, late_seconds=60.0) as running:
        with pytest.raises(OSError, match="timed out"):
            provider.charge(running.url, "o1", {"value": "a"}, timeout_seconds=0.5)
        assert running.charges("o1") == [{"value": "a"}]
        assert provider.charge(running.url, "o1", {"value": "b"}) == {"value": "b"}
        assert len(running.charges("o1")) == 2
