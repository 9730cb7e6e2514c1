"""Workers on machines whose clocks are twenty minutes apart share one table, one queue and one key."""

import time

import pytest

from idempotent_tasks import DynamoDBStore
from tests.integration.conftest import MakeRig

#: Two corrected clocks differ by up to a second: what is left of a lease that is renewed in time must be more.
LEASE_SECONDS = 4.0
#: A claim is renewed three times a lease: so many renewals take longer than a lease.
RENEWALS = 5
#: A store's ``Date`` has whole seconds.
RESOLUTION_SECONDS = 2.0
#: A deferral waits for at least a second; the rest is for a busy machine.
SLACK_SECONDS = 5.0


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("skew_seconds", [600, -600], ids=["holder ahead", "holder behind"])
def test_wrong_clocks_neither_take_over_early_nor_late(
    make_guarded: MakeRig, store: DynamoDBStore, skew_seconds: float
) -> None:
    """A live claim is respected, a dead one taken over when it is over, and both deliveries get one result."""
    rig = make_guarded(tasks={"charge": {"idempotency": {"key": "order", "lease": LEASE_SECONDS}}})
    rig.journal.shut("before-effect")
    holder = rig.start_worker(1, elsewhere_skew_seconds=skew_seconds)
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    rig.start_worker(1, elsewhere_skew_seconds=-skew_seconds)
    duplicate = rig.send("charge", "ord-1", 17)
    key = rig.journal.wait_for("Deferred", id=duplicate.id, reason="busy")["key"]
    rig.journal.wait_for("Renewed", id=original.id, times=RENEWALS)
    record = store.get(key)
    assert record.claimed_at is not None
    assert record.claimed_at / 1000 < time.time() + RESOLUTION_SECONDS
    assert time.time() - RESOLUTION_SECONDS < record.held_until < time.time() + LEASE_SECONDS + RESOLUTION_SECONDS
    assert rig.journal.count("started") == 1
    holder.kill()
    killed_at = time.monotonic()
    rig.journal.open("before-effect")
    heir = rig.journal.wait_for("started", times=2)
    assert time.monotonic() - killed_at < LEASE_SECONDS + RESOLUTION_SECONDS + SLACK_SECONDS
    assert heir["attempt"] == 2
    assert rig.result(original) == rig.result(duplicate) == 17
    assert rig.journal.count("effect") == 1
    assert store.get(key).completed_at == pytest.approx(time.time() * 1000, abs=30_000)
