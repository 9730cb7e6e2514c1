"""`redeliver`: what users' tests see of each crash window, and of what closes it."""

from typing import Any

import pytest
from celery import Celery

from idempotent_tasks import (
    CrashLoopError,
    Done,
    InProgressError,
    MemoryStore,
    NotDone,
    Record,
    Status,
    UnresolvedError,
    events,
)
from idempotent_tasks.testing import Crash, FakeClock, WorkerDied, crash_plans, redeliver
from tests.support.shop import Counting, make


class Provider:
    """A card provider that recognises the keys of what it was asked before."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    def charge(self, key: str) -> None:
        """Note a request."""
        self.requests.append(key)

    @property
    def charges(self) -> int:
        """How many charges there are."""
        return len(set(self.requests))


@pytest.fixture
def provider() -> Provider:
    """A provider that was asked nothing yet."""
    return Provider()


@pytest.fixture
def task(app: Celery, provider: Provider) -> Any:
    """A task that charges once, and passes its key on."""

    def charge(self: Any, order: str, amount: int = 5) -> int:
        provider.charge(self.idempotency.key)
        return amount

    return make(app, charge, bind=True, idempotency={"key": "order"})


@pytest.mark.parametrize(
    ("crash", "runs_and_requests", "last"),
    [
        (Crash.BEFORE_CLAIM, (1, 1), "Committed"),
        (Crash.IN_BODY, (2, 1), "Committed"),
        (Crash.BEFORE_COMMIT, (2, 2), "Committed"),
        (Crash.BEFORE_ACK, (1, 1), "Replayed"),
    ],
)
def test_each_window(
    task: Any, provider: Provider, crash: Crash, runs_and_requests: tuple[int, int], last: str
) -> None:
    """Only what dies between effect and commit does the effect again; the key makes it one charge all the same."""
    happened = redeliver(task, ("ord-17",), crashes=[crash])
    assert (happened.runs, len(provider.requests)) == runs_and_requests
    assert happened.reruns == happened.runs - 1
    assert provider.charges == 1
    assert happened.results[0] is None
    assert happened.get() == 5
    assert len(happened.results) == 2
    assert type(happened.events[-1]).__name__ == last
    (record,) = happened.store.records()  # type: ignore[attr-defined]
    assert (record.status, record.attempt) == (Status.COMPLETED, 0)


def test_a_death_counts_as_a_crash_and_a_finished_delivery_does_not(task: Any) -> None:
    """The attempt that the body sees is the one that it would see on a worker."""
    happened = redeliver(task, ("ord-17",), crashes=["in-body", "before-commit", "before-claim"])
    claimed = [event.attempt for event in happened.events if isinstance(event, events.Claimed)]
    assert claimed == [1, 2, 3]
    assert len({event.fence for event in happened.events if isinstance(event, events.Claimed)}) == 3


def test_by_default_the_acknowledgement_is_lost(counting: Counting, app: Celery) -> None:
    """A message that is delivered twice although its task finished: the plainest redelivery."""
    happened = redeliver(counting.make(app), kwargs={"order": "17"})
    assert counting.runs == happened.runs == 1
    assert happened.get() == [1, "17", 5]
    assert [type(event).__name__ for event in happened.events] == ["Claimed", "Committed", "Replayed"]


def test_a_double_decides_where_the_body_dies(app: Celery) -> None:
    """In the middle of a body the process dies where something that it calls says so; its claim stays."""
    calls: list[str] = []

    def send() -> None:
        calls.append("sent")
        if len(calls) == 1:
            raise WorkerDied

    def charge() -> str:
        try:
            send()
        except Exception:  # noqa: BLE001 - as careless bodies do
            return "swallowed"
        return "done"

    happened = redeliver(make(app, charge), crashes=())
    assert (happened.results[0], happened.get(), happened.runs) == (None, "done", 2)
    assert [type(event).__name__ for event in happened.events] == ["Claimed", "Claimed", "Committed"]


def test_a_body_that_always_kills_its_process_ends_as_on_a_worker(app: Celery) -> None:
    """The crash loop is broken, and the error comes out."""

    def charge() -> None:
        raise WorkerDied

    happened = redeliver(make(app, charge, idempotency={"max_crashes": 3}), crashes=())
    assert happened.runs == 3
    with pytest.raises(CrashLoopError):
        happened.get()


def test_deaths_without_end_fail_the_test(counting: Counting, app: Celery) -> None:
    """A plan that leaves no delivery alive proves nothing either."""
    with pytest.raises(AssertionError, match="100 deliveries died"):
        redeliver(counting.make(app), crashes=["before-claim"] * 100)
    assert counting.runs == 0


def test_a_failure_is_a_result(app: Celery) -> None:
    """A body's own error ends the deliveries, whatever the app says of eager errors."""
    app.conf.task_eager_propagates = True

    def charge() -> None:
        raise KeyError("declined")

    happened = redeliver(make(app, charge), crashes=["before-claim"])
    assert happened.results[1].state == "FAILURE"
    with pytest.raises(KeyError, match="declined"):
        happened.get()


@pytest.mark.parametrize(("crash", "state"), [("in-body", "SUCCESS"), ("before-commit", "SUCCESS")])
def test_a_crash_that_never_comes_fails_the_test(task: Any, crash: str, state: str) -> None:
    """A replay runs no body and commits nothing: a test that plans otherwise proves nothing."""
    with pytest.raises(AssertionError, match=f"never came to '{crash}': it ended with {state}"):
        redeliver(task, ("ord-17",), crashes=["before-ack", crash])


def test_a_crash_is_one_of_five() -> None:
    """A typing error is no plan."""
    with pytest.raises(ValueError, match="after-lunch"):
        redeliver(None, crashes=["after-lunch"])


def test_deaths_are_those_of_the_task_alone(app: Celery, counting: Counting) -> None:
    """A guarded task that the body runs eagerly lives its own life."""
    inner = counting.make(app, name="shop.inner", idempotency={"key": "order"})

    def charge() -> Any:
        return inner.apply(("17",)).get()

    happened = redeliver(make(app, charge), crashes=["before-commit"])
    assert happened.get() == [1, "17", 5]
    assert (happened.runs, counting.runs) == (2, 1)


def test_the_apps_own_store_and_settings_come_back(
    app: Celery, store: MemoryStore, counting: Counting, seen: list[events.Event]
) -> None:
    """Nothing of it reaches the app's store or observers, and the task is as it was."""
    task = counting.make(app, idempotency={"key": "order"})
    for _ in range(2):
        assert redeliver(task, ("17",), crashes=["in-body"]).runs == 2
    assert store.records() == []
    assert seen == []
    assert "run" not in vars(app.tasks[task.name])
    assert task.request_stack.top is None
    assert task.apply(("17",)).get() == [3, "17", 5]
    assert [record.task for record in store.records()] == ["shop.charge"]


def test_an_app_without_a_store_will_do(counting: Counting) -> None:
    """A configuration that has no table in the tests is no hindrance."""
    with Celery("bare", set_as_current=False) as app:
        assert redeliver(counting.make(app)).get() == [1, None, 5]


def test_a_store_of_the_tests_own(app: Celery, counting: Counting, store: MemoryStore, clock: FakeClock) -> None:
    """What was there before the message counts, and time passes when the test says so."""
    task = counting.make(app, idempotency={"key": "order", "expires": 60})
    options: dict[str, Any] = {"store": store, "crashes": (), "idempotency_key": "ord-17"}
    assert [redeliver(task, ("17",), **options).get()[0] for _ in range(2)] == [1, 1]
    clock.advance(120)
    assert redeliver(task, ("17",), **options).get()[0] == 2


def test_an_autoretried_body_is_counted_too(app: Celery) -> None:
    """Celery wraps such a body; each of its tries is a run, and a death in one of them is a crash."""

    def charge(self: Any) -> int:
        if self.request.retries < 2:
            raise KeyError("again")
        return int(self.request.retries)

    task = make(app, charge, bind=True, autoretry_for=(KeyError,), retry_kwargs={"countdown": 0})
    happened = redeliver(task, crashes=["before-commit"])
    assert (happened.get(), happened.runs) == (2, 6)


class Bank:
    """A bank that takes no keys, and can be asked."""

    def __init__(self) -> None:
        self.transfers: list[str] = []
        self.questions = 0

    def task(self, app: Celery, **policy: Any) -> Any:
        """Return a task that transfers, with a ``recover`` that asks."""

        def pay_out(order: str) -> str:
            self.transfers.append(order)
            return order

        def find(record: Record, order: str) -> Done | NotDone:
            assert record.runs > 1
            self.questions += 1
            return Done(order) if order in self.transfers else NotDone()

        policy = {"key": "order", "recover": find, "settle": 60, **policy}
        return make(app, pay_out, name="shop.pay_out", idempotency=policy)


def test_the_plans_of_a_task(app: Celery, counting: Counting) -> None:
    """One with `recover` has a second death in its rerun."""
    once = [(Crash.BEFORE_CLAIM,), (Crash.IN_BODY,), (Crash.BEFORE_COMMIT,), (Crash.BEFORE_ACK,)]
    assert crash_plans(counting.make(app)) == once
    assert crash_plans(counting.make(app, name="shop.parked", idempotency={"on_rerun": "park"})) == once
    assert crash_plans(Bank().task(app)) == [
        *once,
        (Crash.IN_BODY, Crash.IN_RECOVER),
        (Crash.IN_BODY, Crash.BEFORE_COMMIT),
        (Crash.BEFORE_COMMIT, Crash.IN_RECOVER),
        (Crash.BEFORE_COMMIT, Crash.BEFORE_COMMIT),
    ]


def test_recover_may_be_the_settings(app: Celery, counting: Counting) -> None:
    """The task says nothing of it, the app does."""
    app.conf.update(idempotency_recover="tests.unit.test_testing_redelivery:never", idempotency_settle=60)
    assert (Crash.IN_BODY, Crash.IN_RECOVER) in crash_plans(counting.make(app))


def never(record: Record, order: Any = None, amount: int = 5) -> NotDone:
    """Know of nothing."""
    return NotDone()


@pytest.mark.parametrize(
    ("crashes", "runs_and_calls"),
    [
        (["before-claim"], (1, 0)),
        (["in-body"], (2, 1)),
        (["before-commit"], (1, 1)),
        (["before-ack"], (1, 0)),
        (["in-body", "in-recover"], (2, 2)),
        (["in-body", "before-commit"], (2, 2)),
        (["before-commit", "in-recover"], (1, 2)),
        (["before-commit", "before-commit"], (1, 2)),
    ],
)
def test_recover_wherever_the_process_dies(app: Celery, crashes: list[str], runs_and_calls: tuple[int, int]) -> None:
    """One transfer; the body runs again only if it was not made; a call that dies is one too."""
    bank = Bank()
    happened = redeliver(bank.task(app), ("17",), crashes=crashes)
    assert (happened.runs, happened.recoveries) == runs_and_calls
    assert bank.questions == happened.recoveries - crashes.count("in-recover")
    assert bank.transfers == ["17"]
    assert happened.get() == "17"


def test_settle_passes_between_the_deliveries(app: Celery, store: MemoryStore, clock: FakeClock) -> None:
    """On the clock of whichever store; a delivery of the test's own may come too early."""
    began = clock.now()
    task = Bank().task(app)
    redeliver(task, ("17",), crashes=["in-body", "in-recover"], store=store)
    assert 120 <= clock.now() - began < 125

    def charge(order: str) -> None:
        raise KeyError(order)

    failing = make(app, charge, idempotency={"key": "order", "recover": never, "settle": 60})
    assert redeliver(failing, ("18",), crashes=(), store=store).results[0].state == "FAILURE"
    with pytest.raises(InProgressError, match="settle"):
        redeliver(failing, ("18",), crashes=(), store=store).get()


def test_a_task_without_recover_never_comes_to_it(app: Celery, counting: Counting) -> None:
    """Such a plan proves nothing."""
    with pytest.raises(AssertionError, match="never came to 'in-recover'"):
        redeliver(counting.make(app), crashes=["in-body", "in-recover"])


def test_a_recover_that_raises_fails_the_delivery(app: Celery) -> None:
    """There is no queue in which the message could wait for the next time."""

    def away(record: Record, order: str) -> Done:
        raise ConnectionError("bank")

    happened = redeliver(Bank().task(app, recover=away), ("17",), crashes=["before-commit"])
    assert (happened.runs, happened.recoveries) == (1, 1)
    with pytest.raises(ConnectionError, match="bank"):
        happened.get()


@pytest.mark.parametrize(
    ("crash", "parked"),
    [(Crash.BEFORE_CLAIM, False), (Crash.IN_BODY, True), (Crash.BEFORE_COMMIT, True), (Crash.BEFORE_ACK, False)],
)
def test_a_rerun_is_parked(app: Celery, counting: Counting, crash: Crash, *, parked: bool) -> None:
    """The body runs once at most, and a key whose run began without an outcome waits."""
    happened = redeliver(counting.make(app, idempotency={"on_rerun": "park"}), ("17",), crashes=[crash])
    assert (happened.reruns, happened.recoveries) == (0, 0)
    (record,) = happened.store.records()  # type: ignore[attr-defined]
    assert (record.parked_at is not None) is parked
    if parked:
        with pytest.raises(UnresolvedError):
            happened.get()
        assert isinstance(happened.events[-1], events.Parked)
    else:
        assert happened.get()[1] == "17"
