"""`redeliver`: what users' tests see of each crash window, and of what closes it."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
from celery import Celery

from idempotent_tasks import (
    Atomic,
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
from idempotent_tasks.core.records import Claim, Outcome
from idempotent_tasks.testing import Crash, FakeClock, WorkerDied, crash_plans, redeliver
from tests.support.receipts import MemoryReceipts
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


class Orders:
    """An order in three steps, of which the second can be asked about and the third commits in a database."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.receipts = MemoryReceipts()

    def reserve(self) -> str:
        """Do what nobody recognises."""
        self.effects.append("reserve")
        return "reserved"

    def charge(self) -> str:
        """Do what can be asked about."""
        self.effects.append("charge")
        return "charged"

    def find(self, record: Record) -> Done | NotDone:
        """Say whether it was done."""
        return Done("charged") if "charge" in self.effects else NotDone()

    def task(self, app: Celery, **policy: Any) -> Any:
        """Return the task."""

        def order(task: Any) -> list[str]:
            step = task.idempotency.step

            def book() -> str:
                task.idempotency.session.append("book")
                return "booked"

            return [
                step("reserve", self.reserve),
                step.options(recover=self.find)("charge", self.charge),
                step.options(receipts=self.receipts)("book", book),
            ]

        policy = {"settle": 5, **policy}
        return make(app, order, name="shop.order", bind=True, idempotency=policy)


STEPS = ("reserve", "charge", "book")


def step_points(*steps: Any) -> list[tuple[str]]:
    """Return the plans of the points of steps."""
    kinds = (Crash.before_step, Crash.in_step, Crash.after_step)
    return [(kind(step),) for step in steps for kind in kinds]


@pytest.mark.parametrize(
    ("crash", "again"),
    [
        ("before-step:reserve", []),
        ("in-step:reserve", ["reserve"]),
        ("after-step:reserve", []),
        ("before-step:charge", []),
        ("in-step:charge", []),
        ("after-step:charge", []),
        ("before-step:book", []),
        ("in-step:book", []),
        ("after-step:book", []),
    ],
)
@pytest.mark.parametrize("form", ["text", "name", "number"])
def test_each_point_of_a_step(app: Celery, crash: str, again: list[str], form: str) -> None:
    """Only what dies between effect and result does it again, and the tools of the other two close that."""
    orders = Orders()
    kind, step = crash.split(":")
    points = {"before-step": Crash.before_step, "in-step": Crash.in_step, "after-step": Crash.after_step}
    forms = {"text": crash, "name": points[kind](step), "number": points[kind](1 + STEPS.index(step))}
    happened = redeliver(orders.task(app), crashes=[forms[form]])
    assert happened.get() == ["reserved", "charged", "booked"]
    assert sorted(orders.effects) == sorted(["reserve", "charge", *again])
    assert orders.receipts.effects == ["book"]
    assert (happened.runs, happened.results[0]) == (2, None)


def test_which_steps_ran(app: Celery) -> None:
    """And how often somebody was asked."""
    plan = [Crash.in_step("reserve"), Crash.after_step(2), Crash.in_step("book"), Crash.BEFORE_COMMIT]
    happened = redeliver(Orders().task(app), crashes=plan)
    assert happened.steps == ("reserve", "reserve", "charge", "book")
    assert (happened.runs, happened.reruns, happened.recoveries) == (5, 4, 1)


def test_a_step_may_die_each_time(app: Celery) -> None:
    """Each delivery does it once more."""
    orders = Orders()
    happened = redeliver(orders.task(app), crashes=[Crash.in_step(1)] * 3)
    assert (happened.steps.count("reserve"), orders.effects.count("reserve")) == (4, 4)


def test_in_the_recover_of_a_step(app: Celery) -> None:
    """As in that of a task."""
    orders = Orders()
    happened = redeliver(orders.task(app), crashes=[Crash.in_step("charge"), Crash.IN_RECOVER])
    assert (happened.recoveries, orders.effects.count("charge")) == (2, 1)


def test_a_double_dies_in_a_step(app: Celery) -> None:
    """In the middle of its function the process dies where something that it calls says so."""
    calls: list[int] = []

    def charge() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise WorkerDied
        return len(calls)

    def order(self: Any) -> Any:
        return self.idempotency.step("charge", charge)

    assert redeliver(make(app, order, bind=True), crashes=()).get() == 2


@pytest.mark.parametrize(
    "plan",
    [["before-step:4"], ["in-step:refund"], ["in-step:reserve", "before-step:4"], ["after-step:1", "in-step:1"]],
    ids=["no such number", "no such name", "not in the second run", "kept already"],
)
def test_a_step_that_never_comes_fails_the_test(app: Celery, plan: list[str]) -> None:
    """A step that the body does not call, or that is found, proves nothing."""
    with pytest.raises(AssertionError, match=f"never came to '{plan[-1]}': it ended with SUCCESS"):
        redeliver(Orders().task(app), crashes=plan)


@pytest.mark.parametrize("point", ["in-step:", "during-step:charge", "in-step"])
def test_what_is_no_point_of_a_step(point: str) -> None:
    """A typing error is no plan."""
    with pytest.raises(ValueError, match="step"):
        redeliver(None, crashes=[point])


def test_the_plans_of_steps(app: Celery) -> None:
    """By number or by name, in the order in which a body comes to them; again with a second death under `recover`."""
    task = Orders().task(app)
    numbered = crash_plans(task, steps=2)
    assert numbered == [
        (Crash.BEFORE_CLAIM,),
        (Crash.IN_BODY,),
        *step_points(1, 2),
        (Crash.BEFORE_COMMIT,),
        (Crash.BEFORE_ACK,),
    ]
    assert crash_plans(task, steps=["reserve", "charge"])[2:8] == step_points("reserve", "charge")
    recovers = crash_plans(Bank().task(app), steps=1)
    assert (Crash.in_step(1), Crash.IN_RECOVER) in recovers
    assert len(recovers) == 7 + 5 * 2


def test_each_plan_of_steps(app: Celery) -> None:
    """The whole of them can be played, with one effect for each step that has a tool."""
    orders = Orders()
    task = orders.task(app)
    for crashes in [*crash_plans(task, steps=3), *crash_plans(task, steps=STEPS)]:
        for gone in (orders.effects, orders.receipts.effects, orders.receipts.rows):
            gone.clear()
        assert redeliver(task, crashes=crashes).get() == ["reserved", "charged", "booked"]
        assert (orders.effects.count("charge"), orders.receipts.effects) == (1, ["book"])


def test_steps_of_other_tasks_do_not_count(app: Celery) -> None:
    """A guarded task that the body runs eagerly has steps of its own."""

    def other(self: Any) -> Any:
        return self.idempotency.step("charge", len, "a")

    inner = make(app, other, name="shop.inner", bind=True)

    def order(self: Any) -> Any:
        inner.apply(task_id="inner").get()
        return self.idempotency.step("charge", len, "ab")

    happened = redeliver(make(app, order, bind=True), crashes=["in-step:charge"])
    assert (happened.get(), happened.steps, happened.runs) == (2, ("charge", "charge"), 2)


class WritingStore(MemoryStore):
    """A store whose outcomes take effect with writes."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.written: list[Any] = []

    def check_writes(self, key: str, writes: Sequence[Any]) -> None:
        """Take all of them."""

    def commit_with(self, claim: Claim, outcome: Outcome, retention_seconds: float, writes: Sequence[Any]) -> Any:
        """Commit and write."""
        self.written += writes
        return self.commit(claim, outcome, retention_seconds)

    def write(self, writes: Sequence[Any], token: str) -> None:
        """Write."""
        self.written += writes


def test_before_the_commit_of_writes(app: Celery, clock: FakeClock) -> None:
    """What has died there has written nothing."""
    write = {"Put": {"TableName": "orders", "Item": {"id": {"S": "17"}}}}
    store = WritingStore(clock)

    def charge() -> Atomic:
        return Atomic("paid", [write])

    happened = redeliver(make(app, charge), crashes=["before-commit"], store=store)
    assert (happened.get(), happened.runs, store.written) == ("paid", 2, [write])


def test_what_the_store_can_the_process_can(app: Celery) -> None:
    """Whoever looks for the methods without calling them finds them: Python 3.12 does, for a protocol."""
    seen: list[bool] = []

    def charge() -> None:
        store = app.conf.idempotency_store
        names = ("park", "keep_message", "keep_step", "kept_step")
        seen.extend(callable(inspect.getattr_static(store, name)) for name in names)

    redeliver(make(app, charge), crashes=())
    assert seen == [True] * 4
