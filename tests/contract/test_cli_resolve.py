"""``resolve``: a person's decision on a parked key, once, and then the messages that wait for it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask, RecordNotFoundError, Status
from idempotent_tasks.cli import context, idempotency
from idempotent_tasks.core.records import Finished, Granted, Parked
from idempotent_tasks.stores.dynamodb.admin import TableAdmin
from tests.support.guarding import grant, request_by
from tests.support.inline import UNREACHABLE, InlineWorker
from tests.support.shop import raising

Run = Callable[..., Result]
#: Seconds: of a claim that is over at once.
OVER = -1


class Shop:
    """A task whose key was parked, on a worker in this thread."""

    def __init__(self, app: Celery, worker: InlineWorker, store: DynamoDBStore) -> None:
        self.app = app
        self.worker = worker
        self.store = store
        self.bodies: Iterator[Any] = iter([TimeoutError(), "paid"])
        self.key = ""

    def charge(self, order: int) -> Any:
        """Raise, then return."""
        value = next(self.bodies)
        return raising(value)(None) if isinstance(value, Exception) else value

    def park(self, *task_ids: str, **options: Any) -> None:
        """Let a run fail, and then park the messages of these tasks."""
        charge = self.app.tasks["shop.charge"]
        for task_id in ("first", *task_ids):
            charge.apply_async((17,), task_id=task_id, **options)
            self.worker.run_next()
        (self.key,) = (record.key for record in TableAdmin(self.store).records())


@pytest.fixture
def shop(dynamodb: DynamoDBStore) -> Iterator[Shop]:
    """A task with one key for all its calls that are alike."""
    queue = f"queue-{uuid4().hex}"
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(idempotency_store=dynamodb, task_default_queue=queue)
    # The backend is the whole process's.
    app.conf.result_backend_transport_options = {"global_keyprefix": queue}
    worker = InlineWorker(app, queue)
    shop = Shop(app, worker, dynamodb)
    policy = Idempotency(key="order", on_rerun="park", expires=60)

    def charge(order: int) -> Any:
        return shop.charge(order)

    app.set_current()
    app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, idempotency=policy)
    yield shop
    worker.close()


@pytest.fixture
def run(shop: Shop) -> Run:
    """Run a command as ``celery -A shop idempotency`` does."""

    def run(*words: str, app: Celery = shop.app) -> Result:
        return CliRunner().invoke(idempotency, list(words), obj=SimpleNamespace(app=app))

    return run


def test_done_is_the_outcome_of_all(run: Run, shop: Shop) -> None:
    """Each message that waited is published again and replays it; no body runs."""
    shop.park("second", "third")
    assert {shop.worker.state(each) for each in ("second", "third")} == {"FAILURE"}
    result = run("resolve", shop.key, "--done", '"by hand"', "--yes")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"resolved {shop.key!r}: it is completed",
        "published 2 messages again",
    ]
    assert shop.worker.drain() == 2
    assert [shop.worker.result(each) for each in ("second", "third")] == ["by hand"] * 2
    record = shop.store.get(shop.key)
    assert (record.status, record.data, record.parked, record.parked_bytes) == (Status.COMPLETED, '"by hand"', {}, 0)
    assert (record.runs, record.parked_at, record.unresolved_since) == (0, None, None)
    assert next(shop.bodies) == "paid"


def test_run_is_a_first_run(run: Run, shop: Shop) -> None:
    """One body runs, and the others replay its result."""
    shop.park("second", "third")
    result = run("resolve", shop.key, "--run", "--yes")
    assert result.exit_code == 0, result.output
    assert shop.worker.drain() == 2
    assert [shop.worker.result(each) for each in ("second", "third")] == ["paid"] * 2
    assert shop.store.get(shop.key).generation is not None


def test_how_long_an_outcome_is_kept(run: Run, shop: Shop) -> None:
    """As long as a message may wait in its queue, which would run its body if it found none."""
    shop.park("second")
    run("resolve", shop.key, "--done", "1", "--yes")
    record = shop.store.get(shop.key)
    assert record.expiration - (record.completed_at or 0) / 1000 == pytest.approx(14 * 86_400, abs=2)


def test_how_long_an_outcome_without_messages_is_kept(run: Run, shop: Shop) -> None:
    """As long as any other."""
    grant(shop.store, "dies", key="shop.charge#other", lease_seconds=OVER)
    shop.store.park(grant(shop.store, "again", key="shop.charge#other"), "Rerun")
    assert run("resolve", "shop.charge#other", "--done", "1", "--yes").exit_code == 0
    record = shop.store.get("shop.charge#other")
    assert record.expiration - (record.completed_at or 0) / 1000 == pytest.approx(60, abs=2)


def test_what_is_asked(run: Run, shop: Shop) -> None:
    """Nothing is decided without a yes."""
    shop.park("second")
    result = run("resolve", shop.key, "--done", "1")
    assert result.exit_code == 1
    assert "that the run of first has made its effect? Nobody can be asked here: say --yes." in result.stderr
    assert shop.store.get(shop.key).parked_at is not None


@pytest.mark.parametrize("words", [[], ["--run", "--done", "1"], ["--done", "{"]], ids=["neither", "both", "no JSON"])
def test_wrong_usage(run: Run, shop: Shop, words: list[str]) -> None:
    """It says what to say."""
    shop.park("second")
    result = run("resolve", shop.key, *words, "--yes")
    assert result.exit_code == 2
    assert "--done" in result.stderr
    assert shop.store.get(shop.key).parked_at is not None


def test_a_command_that_is_repeated(run: Run, shop: Shop) -> None:
    """Its answer was lost, or its script is careful: it ends well where the key is as it decides."""
    shop.park("second")
    for _ in range(2):
        assert run("resolve", shop.key, "--done", '"paid"', "--yes").exit_code == 0
    other = run("resolve", shop.key, "--done", '"something else"', "--yes")
    assert other.exit_code == 1
    assert "is not parked but completed, with no such result" in other.stderr
    assert run("resolve", shop.key, "--run", "--yes").stdout.splitlines() == [
        f"{shop.key!r} is not parked any more, it is completed",
        "published 0 messages again",
    ]


def test_done_for_a_key_that_runs(run: Run, shop: Shop) -> None:
    """Its body is about to say itself what it returns."""
    grant(shop.store, key="shop.charge#other")
    result = run("resolve", "shop.charge#other", "--done", "1", "--yes")
    assert result.exit_code == 1
    assert "is not parked but running" in result.stderr


def test_a_broker_that_fails(run: Run, shop: Shop) -> None:
    """The decision stands, and the messages are kept; the command, repeated, publishes them."""
    shop.park("second", "third")
    away = Celery("shop", set_as_current=False)
    away.conf.update(UNREACHABLE, idempotency_store=shop.store)
    first = run("resolve", shop.key, "--done", "1", "--yes", app=away)
    assert first.exit_code == 1
    assert "published 0 of 2 messages, then that of " in first.stderr
    assert "run the command again for the rest" in first.stderr
    assert sorted(shop.store.get(shop.key).parked) == ["second", "third"]
    assert run("resolve", shop.key, "--done", "1", "--yes").exit_code == 0
    assert shop.worker.drain() == 2
    assert [shop.worker.result(each) for each in ("second", "third")] == [1, 1]


def test_messages_that_are_left(run: Run, shop: Shop) -> None:
    """A decision was made, and its command has died: what is left is published."""
    shop.park("second", "third")
    record = shop.store.get(shop.key)
    assert TableAdmin(shop.store).resolve(record, None, 3600)
    assert not TableAdmin(shop.store).resolve(record, None, 3600)
    assert run("resolve", shop.key, "--done", '"too late"', "--yes").exit_code == 1
    result = run("resolve", shop.key, "--run", "--yes")
    assert "is not parked any more, it is free" in result.stdout
    assert shop.worker.drain() == 2
    assert [shop.worker.result(each) for each in ("second", "third")] == ["paid"] * 2


def test_a_message_is_not_removed_from_a_key_that_is_parked_again(shop: Shop) -> None:
    """The copy that was published has parked the key again, and relies on what the record has."""
    shop.park("second")
    store, operations = shop.store, TableAdmin(shop.store)
    assert operations.resolve(store.get(shop.key), None, 3600)
    decided = store.get(shop.key)
    grant(store, "dies", key=shop.key, lease_seconds=OVER)
    assert isinstance(store.park(grant(store, "again", key=shop.key), "Rerun"), Parked)
    assert not operations.remove_message(decided, "second")
    assert list(store.get(shop.key).parked) == ["second"]
    assert operations.resolve(store.get(shop.key), None, 3600)
    assert not operations.remove_message(decided, "second")
    again = store.get(shop.key)
    assert operations.remove_message(again, "second")
    assert not operations.remove_message(again, "second")
    assert store.get(shop.key).parked_bytes == 0


def test_a_message_of_a_decision_that_names_no_fence(shop: Shop) -> None:
    """An older version has decided: it is removed until the next decision."""
    shop.park("second")
    store, operations = shop.store, TableAdmin(shop.store)
    parked = store.get(shop.key)
    operations.resolve(parked, None, 3600)
    older = replace(store.get(shop.key), resolved_fence=None)
    store.forget(shop.key)
    store.restore(older)
    assert operations.remove_message(older, "second")
    store.forget(shop.key)
    store.restore(parked)
    operations.resolve(parked, None, 3600)
    assert not operations.remove_message(older, "second")
    assert list(store.get(shop.key).parked) == ["second"]


def test_a_late_removal_takes_no_message_away(run: Run, shop: Shop) -> None:
    """The copy that was published has parked the key again, and the next command stopped right after its decision."""
    shop.park("second")

    class Late(TableAdmin):
        def remove_message(self, *given: Any) -> bool:
            grant(shop.store, "dies", key=shop.key, lease_seconds=OVER)
            shop.worker.run_next()
            assert super().resolve(shop.store.get(shop.key), None, 3600)
            assert not super().remove_message(*given)
            return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "TableAdmin", Late)
        assert run("resolve", shop.key, "--run", "--yes").exit_code == 0
    assert shop.worker.state("second") == "FAILURE"
    assert run("resolve", shop.key, "--run", "--yes").output.endswith("published 1 message again\n")
    shop.worker.drain()
    assert shop.worker.result("second") == "paid"


def test_a_claim_keeps_what_is_to_be_published(shop: Shop) -> None:
    """Through runs, outcomes and expiry."""
    shop.park("second")
    store = shop.store
    record = store.get(shop.key)
    TableAdmin(store).resolve(record, None, 3600)
    answer = store.claim(request_by("next", key=shop.key))
    assert isinstance(answer, Granted)
    assert answer.claim.parked_bytes == record.parked_bytes
    assert isinstance(store.claim(request_by("other", key=shop.key)), Finished) is False
    assert store.get(shop.key).parked == record.parked


@pytest.mark.parametrize("command", ["release", "forget"])
def test_other_commands_leave_it_alone(run: Run, shop: Shop, command: str) -> None:
    """A parked key is resolved; to delete its messages takes --force."""
    shop.park("second")
    result = run(command, shop.key, "--yes")
    assert result.exit_code == 1
    assert "resolve" in result.stderr
    purged = run("purge", "--state", "parked", "--before", "2099-01-01", "--yes")
    assert "no such records" in purged.stdout
    assert list(shop.store.get(shop.key).parked) == ["second"]


def test_a_parked_key_without_messages_is_left_alone(run: Run, shop: Shop) -> None:
    """If it were forgotten, the next call would run the body again."""
    grant(shop.store, "dies", key="shop.charge#other", lease_seconds=OVER)
    shop.store.park(grant(shop.store, "again", key="shop.charge#other"), "Rerun")
    assert run("forget", "shop.charge#other", "--yes").exit_code == 1
    assert "no such records" in run("purge", "--state", "parked", "--before", "2099-01-01", "--yes").stdout


def test_force_deletes_it(run: Run, shop: Shop) -> None:
    """With its messages."""
    shop.park("second")
    assert run("forget", shop.key, "--yes", "--force").exit_code == 0
    with pytest.raises(RecordNotFoundError):
        shop.store.get(shop.key)


def test_how_it_is_shown(run: Run, shop: Shop) -> None:
    """State, reason and whose messages wait; never their arguments."""
    shop.park("second")
    assert "parked" in run("list", "--state", "parked").stdout
    shown = run("show", shop.key).stdout
    assert "second" in shown
    assert "Rerun" in shown
    assert "9999" not in shown
    assert "parked_messages" not in run("list", "--json").stdout
