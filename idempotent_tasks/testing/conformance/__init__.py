"""`StoreConformance`: the test suite for whoever writes a store.

Its parts are classes of their own, one for each subject.
"""

from idempotent_tasks.testing.conformance.claims import ClaimConformance
from idempotent_tasks.testing.conformance.notes import NoteConformance
from idempotent_tasks.testing.conformance.outcomes import OutcomeConformance
from idempotent_tasks.testing.conformance.races import RaceConformance
from idempotent_tasks.testing.conformance.releases import ReleaseConformance
from idempotent_tasks.testing.conformance.reservations import ReservationConformance
from idempotent_tasks.testing.conformance.sequences import SequenceConformance

__all__ = ["CallConformance", "RaceConformance", "SequenceConformance", "StoreConformance"]


class CallConformance(
    ClaimConformance, ReservationConformance, OutcomeConformance, ReleaseConformance, NoteConformance
):
    """What each call of a `Store` does, one after the other."""


class StoreConformance(CallConformance, SequenceConformance, RaceConformance):
    """Tests of a store against the protocol; subclass it, and give pytest the store as a fixture.

    .. code-block:: python

        class TestMyStore(StoreConformance):
            @pytest.fixture
            def store(self, idempotency_clock):
                return MyStore(clock=idempotency_clock)
    """
