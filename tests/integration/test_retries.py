"""Retries: each try has its own claim, and only the last one commits."""

import pytest

from tests.integration.conftest import MakeRig


@pytest.mark.parametrize("task", ["retry", "fail"], ids=["self.retry", "autoretry_for"])
def test_retries_then_one_committed_result(make_guarded: MakeRig, task: str) -> None:
    """Two failures and a success are three tries and one effect; a later publish with the key replays."""
    rig = make_guarded(tasks={task: {"idempotency": {"key": "order"}}})
    rig.start_worker()
    first = rig.send(task, "ord-1", 2)
    assert rig.result(first) == 3
    tries = rig.journal.entries("started", id=first.id)
    assert [each["retries"] for each in tries] == [0, 1, 2]
    assert [each["attempt"] for each in tries] == [1, 1, 1]
    assert rig.journal.count("Deferred") == 0
    assert rig.result(rig.send(task, "ord-1", 2)) == 3
    assert rig.journal.count("started") == 3
    assert rig.journal.count("effect") == rig.journal.count("Committed") == rig.journal.count("Replayed") == 1
