"""`StoreConformance`: the test suite for whoever writes a store.

Its parts are classes of their own, one for each subject.
"""

from idempotent_tasks.testing.conformance.claims import ClaimConformance
from idempotent_tasks.testing.conformance.notes import NoteConformance
from idempotent_tasks.testing.conformance.outcomes import OutcomeConformance
from idempotent_tasks.testing.conformance.parking import ParkingConformance, SettlingConformance
from idempotent_tasks.testing.conformance.races import RaceConformance
from idempotent_tasks.testing.conformance.releases import ReleaseConformance
from idempotent_tasks.testing.conformance.reservations import ReservationConformance
from idempotent_tasks.testing.conformance.runs import RunConformance
from idempotent_tasks.testing.conformance.sequences import SequenceConformance
from idempotent_tasks.testing.conformance.steps import StepConformance

__all__ = ["CallConformance", "RaceConformance", "SequenceConformance", "StoreConformance"]


class CallConformance(
    ClaimConformance,
    ReservationConformance,
    RunConformance,
    OutcomeConformance,
    ReleaseConformance,
    SettlingConformance,
    ParkingConformance,
    StepConformance,
    NoteConformance,
):
    """What each call of a `Store`, a `ParkingStore` or a `SteppingStore` does, one after the other."""


class StoreConformance(CallConformance, SequenceConformance, RaceConformance):
    """The pytest suite that every `idempotent_tasks.stores.Store` has to pass.

    A subclass, or its module, has the fixture ``store``: an empty store, whose time is that of the fixture
    ``idempotency_clock``, a `idempotent_tasks.testing.FakeClock`.  A random sequence of calls that fails is shown with
    its seed, shortened.

    .. code-block:: python

        class TestMyStore(StoreConformance):
            @pytest.fixture
            def store(self, idempotency_clock):
                return MyStore(clock=idempotency_clock)
    """
