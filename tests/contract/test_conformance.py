"""The stores of this library, and the simulation's interpreter, against the suite that is shipped for every store."""

import pytest

from idempotent_tasks.testing.conformance import CallConformance, RaceConformance
from tests.contract.conftest import AnyStore


class TestEachCall(CallConformance):
    """One call after the other, on a clock that only the test moves."""


class TestRaces(RaceConformance):
    """Threads that race for keys."""

    racing_keys = 500

    @pytest.fixture
    def store(self, racetrack: AnyStore) -> AnyStore:
        """Each implementation in turn, without a wire in between."""
        return racetrack
