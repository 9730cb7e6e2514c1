"""The kill switch: every delivery runs its body as plain Celery would, and nobody asks the store."""

import logging
from itertools import repeat
from typing import Any

import pytest
from celery import Celery, Task
from celery.worker import WorkController

from idempotent_tasks import ConfigurationError, IdempotentTask
from idempotent_tasks.core.delivery import Delivery
from idempotent_tasks.settings import DISABLED_VARIABLE, settings_of
from idempotent_tasks.testing import MemoryStore
from tests.support.shop import key_of
from tests.support.stores import FaultyStore, down


@pytest.fixture
def charge(app: Celery, store: MemoryStore) -> Task:
    """A task over a store whose every call would fail."""
    steps = {name: repeat(down(AssertionError(f"{name} was called"))) for name in ("claim", "commit", "release")}
    app.conf.idempotency_store = FaultyStore(store, **steps)

    @app.task(base=IdempotentTask, shared=False, name="shop.charge", bind=True, idempotency={"key": "order"})
    def charge(self: Task, order: int) -> list[Any]:
        return [order, self.idempotency.key, self.idempotency.lost]

    return charge


@pytest.mark.parametrize("value", [True, "1", "true", "Yes", "ON"])
def test_a_disabled_app_runs_every_delivery(app: Celery, charge: Task, value: Any) -> None:
    """The body has an unguarded run with the key that it has otherwise; the store has no call."""
    app.conf.idempotency_disabled = value
    key = key_of("order", Delivery(task="shop.charge", task_id="any", args=(17,), kwargs={}), lambda order: None)
    assert charge.apply((17,)).get() == charge.apply((17,)).get() == [17, key, False]


def test_a_key_that_cannot_be_had_stops_no_disabled_body(app: Celery, store: MemoryStore) -> None:
    """As plain Celery does, whatever the arguments are."""
    app.conf.idempotency_disabled = True

    @app.task(base=IdempotentTask, shared=False, name="shop.charge", bind=True, idempotency={"key": "order.id"})
    def charge(self: Task, order: dict[str, int]) -> str | None:
        return self.idempotency.key

    assert charge.apply(({},)).get() is None


def test_the_environment_beats_the_setting(app: Celery, charge: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is on call can set a variable, and need not deploy."""
    monkeypatch.setenv(DISABLED_VARIABLE, "1")
    app.conf.idempotency_disabled = False
    assert charge.apply((17,)).get()[::2] == [17, False]


@pytest.mark.parametrize("value", [None, False, "0", "false", "no", "off"])
def test_what_is_not_on_is_off(app: Celery, charge: Task, value: Any) -> None:
    """The library guards."""
    app.conf.idempotency_disabled = value
    with pytest.raises(AssertionError, match="claim was called"):
        charge.apply((17,)).get()


@pytest.mark.parametrize("value", ["maybe", 2, ""])
def test_anything_else_is_a_wrong_setting(app: Celery, value: Any) -> None:
    """A switch that nobody can read is not guessed."""
    app.conf.idempotency_disabled = value
    with pytest.raises(ConfigurationError, match="not one of 1, true, yes, on, 0, false, no, off"):
        settings_of(app)


def test_a_disabled_worker_is_loud(app: Celery, charge: Task, caplog: pytest.LogCaptureFixture) -> None:
    """One warning when it starts, and no check, which would ask the table."""
    app.conf.idempotency_disabled = True
    assert WorkController(app=app, pool="prefork", concurrency=1)
    (record,) = [each for each in caplog.records if each.name == "idempotent_tasks"]
    assert record.levelno == logging.WARNING
    assert "idempotency is DISABLED" in record.getMessage()
