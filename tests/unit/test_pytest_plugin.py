"""The pytest plug-in: time, a store and events of a test's own, and no cost where it is not used."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import pytest_idempotent_tasks
from idempotent_tasks import MemoryStore
from idempotent_tasks.events import Event
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import FakeClock
from tests.support.shop import Counting

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]


@pytest.fixture
def foreign() -> Celery:
    """An app as an application makes it: its table is a real one, which no test may touch."""
    app = Celery("foreign", broker="memory://", set_as_current=False)
    app.conf.idempotency_store = "dynamodb://eu-west-1/production"
    return app


def test_an_app_is_in_memory_for_one_test(
    foreign: Celery,
    counting: Counting,
    *,
    idempotency_in_memory: Callable[[Any], None],
    idempotency_store: MemoryStore,
    idempotency_events: list[Event],
    idempotency_clock: FakeClock,
) -> None:
    """Claims, outcomes and events are the test's own; outcomes expire when the test says so."""
    task = counting.make(foreign, idempotency={"key": "order", "expires": 60})
    idempotency_in_memory(foreign)
    assert [task.apply(("17",)).get()[0] for _ in range(2)] == [1, 1]
    assert [type(event).__name__ for event in idempotency_events] == ["Claimed", "Committed", "Replayed"]
    assert [record.task for record in idempotency_store.records()] == [task.name]
    idempotency_clock.advance(120)
    assert task.apply(("17",)).get()[0] == 2
    assert foreign.conf.idempotency_store == "dynamodb://eu-west-1/production"


def test_an_apps_own_settings_come_back(tmp_path: Path) -> None:
    """A test that does not ask for the memory gets what the app's setting says, also after one that did."""
    (tmp_path / "test_shop.py").write_text(
        "from celery import Celery\n"
        "from idempotent_tasks.settings import settings_of\n"
        "app = Celery('shop', set_as_current=False)\n"
        "app.conf.idempotency_store = 'dynamodb://eu-west-1/production'\n"
        "def store():\n"
        "    return type(settings_of(app).store).__name__\n"
        "def test_before():\n"
        "    assert store() == 'DynamoDBStore'\n"
        "def test_between(idempotency_in_memory, idempotency_store):\n"
        "    idempotency_in_memory(app)\n"
        "    assert settings_of(app).store is idempotency_store\n"
        "def test_after(idempotency_store):\n"
        "    assert store() == 'DynamoDBStore'\n"
        "    assert idempotency_store.records() == []\n"
    )
    done = subprocess.run([*PYTEST, "test_shop.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_switch_can_be_made_twice(foreign: Celery, idempotency_in_memory: Callable[[Any], None]) -> None:
    """By a fixture for every test and by the test itself."""
    idempotency_in_memory(foreign)
    idempotency_in_memory(foreign)
    assert isinstance(settings_of(foreign).store, MemoryStore)


def test_an_unused_plugin_imports_nothing(tmp_path: Path) -> None:
    """A run of other tests in the same environment pays for one small module, and for no Celery and no boto3."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    assert 'pytest_idempotent_tasks' in sys.modules\n"
        "    assert not {'idempotent_tasks', 'celery', 'kombu', 'boto3'} & set(sys.modules)\n"
    )
    done = subprocess.run([*PYTEST, "test_other.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_names_say_whose_they_are() -> None:
    """Fixtures of all plug-ins share one name space."""
    fixtures = [
        name
        for name, value in vars(pytest_idempotent_tasks).items()
        if type(value).__name__ == "FixtureFunctionDefinition"
    ]
    assert sorted(fixtures) == sorted(pytest_idempotent_tasks.__all__)
    assert [name for name in fixtures if not name.startswith("idempotency_")] == []
