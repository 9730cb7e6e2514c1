"""A world of calls only: the shipped `DynamoDBStore` on the interpreter of its requests, and a model of the protocol.

No time passes in it but between calls, and nothing goes wrong: it shows what each condition of each write is for.
"""

from typing import Final

from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.testing import FakeClock
from idempotent_tasks.testing.conformance.sequences import failing_sequence
from simulation.history import Entry, History
from simulation.network import DirectClient, Service
from simulation.scheduler import START

__all__ = ["play"]

TASK: Final = "calls"


def play(seed: int) -> History:
    """Play the sequence of a seed, up to the first answer or record that the protocol does not permit."""
    clock = FakeClock(START)
    store = DynamoDBStore("records", client=DirectClient(Service(clock.now)), clock=clock)
    failure = failing_sequence(seed, store, clock, store.forget, shorten=False)
    history = History(seed, TASK, [Entry(0.0, "called", {})], ended=True)
    if failure is not None:
        history.entries.append(Entry(clock.now() - START, "differs", {"what": failure.splitlines()[-1]}))
    return history
