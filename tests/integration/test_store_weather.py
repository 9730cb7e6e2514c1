"""Many messages while every kind of fault happens on the wire at random, by a seed."""

import random
from collections import Counter

import pytest

from tests.integration.conftest import MakeRig
from tests.support.rig import Load
from tests.testbed.wire import CLEAR, FAULT_RATES, Weather, Wire

SEED = 20
KEYS = 40
MESSAGES_PER_KEY = 3


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_random_faults(make_guarded: MakeRig, wire: Wire) -> None:
    """Two workers, three messages a key, and three requests of ten broken: one effect and one result a key."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks={"charge": {"idempotency": {"key": "order"}}})
    rig.start_worker()
    rig.start_worker()
    weather = Weather(SEED)
    load = Load(rig, lambda: f"seed {SEED}, {dict(weather.counts)}, {dict(Counter(wire.operations()))}")
    orders = [f"ord-{number}" for number in range(KEYS)] * MESSAGES_PER_KEY
    random.Random(SEED).shuffle(orders)
    wire.break_all(weather)
    for order in orders:
        load.send(order)
    load.account()
    met = {kind for kind in FAULT_RATES if weather.counts[kind]}
    assert met == FAULT_RATES.keys(), weather.counts
    assert weather.counts[CLEAR] >= len(orders), weather.counts
    assert rig.journal.count("Unrecorded") == rig.journal.count("Superseded") == rig.journal.count("Lost") == 0
