"""The stores of this library, and the simulation's interpreter, against the suite that is shipped for every store."""

import pytest

from idempotent_tasks.testing.conformance import CallConformance, RaceConformance, SequenceConformance
from tests.contract.conftest import AnyStore


class TestEachCall(CallConformance):
    """One call after the other, on a clock that only the test moves."""


@pytest.mark.parametrize("store", ["memory", "simulated"], indirect=True)
class TestSequencesInProcess(SequenceConformance):
    """Random sequences of calls where a call takes no time."""

    seeds = range(250)


@pytest.mark.parametrize("store", ["ministack", "roto"], indirect=True)
class TestSequencesOnServers(SequenceConformance):
    """Fewer of them where each call is a request to a server: what the interpreter is proven alike to."""

    seeds = range(1000, 1010)


class TestRaces(RaceConformance):
    """Threads that race for keys."""

    racing_keys = 500

    @pytest.fixture
    def store(self, racetrack: AnyStore) -> AnyStore:
        """Each implementation in turn, without a wire in between."""
        return racetrack
