"""Deployments: what a new version of a task makes of the old one's messages and records, row by row of the page."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task, current_task

from idempotent_tasks import (
    Done,
    DynamoDBStore,
    Idempotency,
    InProgressError,
    MemoryStore,
    NotDone,
    PayloadMismatchError,
    Record,
    ResultUnavailableError,
    StepMismatchError,
    StoreUnavailableError,
    UnresolvedError,
)
from idempotent_tasks.core.keys import Selector, downstream_key, step_key
from idempotent_tasks.core.records import Status
from idempotent_tasks.testing import FakeClock
from tests.support.deployments import Carried, Code, Deployment, Version, charge, row
from tests.support.receipts import MemoryReceipts, lost
from tests.support.shop import deliver

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "deploying.md").read_text(encoding="utf-8")
#: The first column of the table.
ROWS = re.findall(r"^\| \*\*(.+?)\*\* \|", PAGE, re.MULTILINE)
#: Where the rows' tests are.
SOURCES = ("unit/test_deployments.py", "integration/test_deployments.py")

Deploy = Callable[..., Deployment]

BY_ORDER: dict[str, Any] = {"key": "order_id"}
OLD = Code(BY_ORDER)
KEPT = Carried(replayed=True, waited=True, taken_over=True)
#: Finished work runs again, running work runs beside itself, and a reservation stands until it expires.
LOST = Carried(replayed=False, waited=False, taken_over=False)


def test_every_row_has_a_test() -> None:
    """And no test is of a row that is not there."""
    sources = "\n".join((ROOT / "tests" / source).read_text(encoding="utf-8") for source in SOURCES)
    tested = set(re.findall(r'^ *@row\("(.+)"\)$', sources, re.MULTILINE))
    assert tested == set(ROWS)
    assert len(ROWS) == len(set(ROWS)) > 10


def test_every_option_is_in_a_row() -> None:
    """An option whose change nobody has thought about is missing from the page."""
    named = set(re.findall(r"`(\w+)`", " ".join(ROWS)))
    assert {field.name for field in fields(Idempotency)} <= named


@pytest.fixture
def deploy(app: Celery, store: MemoryStore, queue: str) -> Iterator[Deploy]:
    """Make a deployment of an old and a new version."""
    versions: list[Version] = []

    def version(name: str, *codes: Code) -> Version:
        own = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        own.conf.update(task_default_queue=queue, idempotency_store=codes[0].store or store, **dict(codes[0].conf))
        versions.append(Version(name, own, queue, *codes))
        return versions[-1]

    def make(old: Code, *new: Code) -> Deployment:
        reserving = replace(old, policy={**old.policy, "at_publish": "join"})
        return Deployment(version("old", old), version("new", *new), version("old", reserving), store)

    yield make
    for each in versions:
        each.close()


@row("The task's name")
def test_a_new_name(deploy: Deploy) -> None:
    """New messages find no old record; the old ones have no task here (see the integration tests)."""
    deployment = deploy(OLD, Code(BY_ORDER, name="billing.charge"))
    new = deployment.new
    assert "shop.charge" not in new.app.tasks
    deployment.old.deliver("ord-1", 5)
    assert new.deliver("ord-1", 5).result == ["new", "ord-1", 5]
    running = deployment.while_running(lambda: new.publish("ord-2", 5), "ord-2", 5)
    assert running.result == ["new", "ord-2", 5]


@row("The task's name, with `prefix` set to the old one and the old name kept")
@pytest.mark.parametrize("publisher", ["old", "new"])
def test_a_new_name_beside_the_old_one(deploy: Deploy, publisher: str) -> None:
    """Whichever name a message has."""
    policy = {**BY_ORDER, "prefix": "shop.charge"}
    deployment = deploy(OLD, Code(policy, name="billing.charge"), Code(policy))
    assert deployment.carried(5, publisher=getattr(deployment, publisher)) == KEPT


@row("`prefix`")
def test_another_prefix(deploy: Deploy) -> None:
    """Every key is another one."""
    assert deploy(OLD, Code({**BY_ORDER, "prefix": "charges"})).carried(5) == LOST


@row("`key`, to select another value")
@pytest.mark.parametrize("key", [None, "[order_id]", "[order_id, cents]", "{id: order_id}"])
def test_another_key(deploy: Deploy, key: str | None) -> None:
    """Another part of the arguments, or another form of it."""
    assert deploy(OLD, Code({"key": key})).carried(5) == LOST


@row("`key`, to select another value")
def test_a_number_and_its_text(deploy: Deploy) -> None:
    """Values keep their types."""
    deployment = deploy(Code({"key": "cents"}), Code({"key": "to_string(cents)"}))
    deployment.old.deliver("ord-1", 17)
    deployment.old.publish("ord-1", 17)
    deployment.new.run_next()
    assert deployment.new.runs == [("ord-1", 17)]


def order_number(order_id: Any, cents: int) -> Any:
    """Select as the expression ``order_id`` does."""
    return order_id


@row("`key`, to select the same value in another way")
@pytest.mark.parametrize("key", ["order_id || 'none'", "not_null(order_id)", "@.order_id", order_number])
def test_another_way_to_the_same_key(deploy: Deploy, key: Any) -> None:
    """Equal values give equal keys, whoever has selected them."""
    assert deploy(OLD, Code({"key": key})).carried(5) == KEPT


@row("`key`, to select the same value in another way")
def test_the_same_key_with_the_call(deploy: Deploy) -> None:
    """An explicit key is equal to what an expression selects."""
    deployment = deploy(OLD, Code({}))
    deployment.old.deliver("ord-1", 5)
    assert deployment.new.deliver("ord-1", 5, idempotency_key="ord-1").result[0] == "old"


@row("`downstream`, to select another value, given for the first time, or dropped")
@pytest.mark.parametrize(
    ("before", "after"), [(None, "order_id"), ("['charge', order_id]", "order_id"), ("order_id", None)]
)
def test_another_downstream_key(deploy: Deploy, before: str | None, after: str | None) -> None:
    """No record depends on it; what it does to the keys has tests of its own."""
    assert deploy(Code({**BY_ORDER, "downstream": before}), Code({**BY_ORDER, "downstream": after})).carried(5) == KEPT


@row("`downstream`, to select the same value in another way")
@pytest.mark.parametrize("after", ["order_id || 'none'", order_number])
def test_another_way_to_the_same_downstream_key(deploy: Deploy, after: Any) -> None:
    """As for ``key``."""
    codes = [Code({"key": each, "downstream": each}) for each in ("order_id", after)]
    assert deploy(*codes).carried(5) == KEPT
    selectors = [Selector.of("downstream", each) for each in ("order_id", after)]
    before, now = (downstream_key(deliver("ord-1", 5), each, inspect.signature(charge)) for each in selectors)
    assert before == now


@row("`powertools`")
@pytest.mark.parametrize("options", [(False, True), (True, False)])
def test_powertools(deploy: Deploy, options: tuple[bool, bool]) -> None:
    """Both ways."""
    codes = [Code({**BY_ORDER, "powertools": each, "prefix": "shop.charge"}) for each in options]
    assert deploy(*codes).carried(5) == LOST


@row("`validate`")
@pytest.mark.parametrize(
    ("before", "after"), [(None, "cents"), ("cents", None), ("cents", "[cents, order_id]"), ("cents", "order_id")]
)
def test_another_validation(deploy: Deploy, before: str | None, after: str | None) -> None:
    """Identical messages are replayed and waited for."""
    assert deploy(Code({**BY_ORDER, "validate": before}), Code({**BY_ORDER, "validate": after})).carried(5) == KEPT


@row("`validate`")
def test_another_payload_between_validations(deploy: Deploy) -> None:
    """It is not noticed between two expressions, and is within one."""
    deployment = deploy(Code({**BY_ORDER, "validate": "cents"}), Code({**BY_ORDER, "validate": "[cents]"}))
    deployment.old.deliver("ord-1", 5)
    assert deployment.new.deliver("ord-1", 6).result == ["old", "ord-1", 5]
    deployment.new.deliver("ord-2", 5)
    assert isinstance(deployment.new.deliver("ord-2", 6).result, PayloadMismatchError)


@row("`unresolved_for`")
def test_another_retention_of_what_has_no_outcome(deploy: Deploy, clock: FakeClock) -> None:
    """Each record is kept as the version has said that claimed the key last; an outcome's `expires` is the same."""
    deployment = deploy(Code({**BY_ORDER, "unresolved_for": 7200}), Code({**BY_ORDER, "unresolved_for": 60}))
    assert deployment.carried(5) == KEPT
    deployment.old.publish("failing", 5)
    deployment.old.during = fail
    deployment.old.run_next()
    kept = next(each for each in deployment.store.records() if each.runs)
    assert 7199 <= kept.expiration - clock.now() <= 7201


@row("`on_rerun`")
@pytest.mark.parametrize("rules", [("run", "park"), ("park", "run")])
def test_another_rule_for_reruns(deploy: Deploy, rules: tuple[str, str]) -> None:
    """The new one decides about the next rerun, also of what the old version has run."""
    deployment = deploy(*(Code({**BY_ORDER, "on_rerun": each}) for each in rules))
    assert deployment.carried(5) == KEPT
    leave_no_outcome(deployment.old, "ord-1")
    again = deployment.new.deliver("ord-1", 5)
    assert isinstance(again.result, UnresolvedError) is (rules[1] == "park")
    assert again.state == ("FAILURE" if rules[1] == "park" else "SUCCESS")


@row("`on_rerun`")
def test_what_is_parked(deploy: Deploy) -> None:
    """It stays parked under a rule that would not park it."""
    deployment = deploy(Code({**BY_ORDER, "on_rerun": "park"}), OLD)
    leave_no_outcome(deployment.old, "ord-1")
    for version in (deployment.old, deployment.new):
        assert isinstance(version.deliver("ord-1", 5).result, UnresolvedError)
    assert deployment.new.runs == []


def find_nothing(record: Record, order_id: Any, cents: int) -> NotDone:
    """Say that nothing was done."""
    return NotDone()


def find_charge(record: Record, order_id: Any, cents: int) -> Done:
    """Say what was done."""
    return Done(["found", order_id, cents])


@row("`recover` or `settle`")
def test_another_question(deploy: Deploy, clock: FakeClock) -> None:
    """The old version's run settles for as long as that has said; then the new version asks in its own way."""
    old, new = ({"recover": find_nothing, "settle": 60}, {"recover": find_charge, "settle": 600})
    deployment = deploy(Code({**BY_ORDER, **old}), Code({**BY_ORDER, **new}))
    leave_no_outcome(deployment.old, "ord-1")
    clock.advance(59)
    early = deployment.new.deliver("ord-1", 5)
    assert (early.state, deployment.new.worker.waiting()) == ("PENDING", 1)
    deployment.new.worker.take()
    clock.advance(2)
    assert deployment.new.deliver("ord-1", 5).result == ["found", "ord-1", 5]


@row("`recover` or `settle`")
@pytest.mark.parametrize(
    "options", [({}, {"recover": find_nothing, "settle": 60}), ({"recover": find_nothing, "settle": 60}, {})]
)
def test_the_first_question(deploy: Deploy, options: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Records and messages are those of before."""
    before, after = options
    assert deploy(Code({**BY_ORDER, **before}), Code({**BY_ORDER, **after})).carried(5) == KEPT


@row("`expires`")
@pytest.mark.parametrize("seconds", [60, 86_400])
def test_another_retention(deploy: Deploy, clock: FakeClock, seconds: float) -> None:
    """A record expires when its own version has said."""
    deployment = deploy(Code({**BY_ORDER, "expires": 3600}), Code({**BY_ORDER, "expires": seconds, "lease": 10}))
    assert deployment.carried(5) == KEPT
    clock.advance(3599)
    assert deployment.new.deliver("finished", 5).result[0] == "old"
    clock.advance(3)
    assert deployment.new.deliver("finished", 5).result[0] == "new"


@row("`expires`, from or to `0`")
def test_from_and_to_a_lock(deploy: Deploy) -> None:
    """An outcome of a key is none of a lock, and no lock is an outcome."""
    lock = Code({**BY_ORDER, "expires": 0})
    assert deploy(OLD, lock).carried(5) == LOST
    deployment = deploy(lock, OLD)
    deployment.old.deliver("ord-1", 5)
    deployment.old.publish("ord-1", 5)
    deployment.new.run_next()
    assert deployment.new.runs == [("ord-1", 5)]


@row("`lease`, `grace` or the time limit")
@pytest.mark.parametrize("after", [{"lease": 600}, {"lease": 10}, {"lease": None, "grace": 60}], ids=str)
def test_another_lease(deploy: Deploy, store: MemoryStore, clock: FakeClock, after: dict[str, Any]) -> None:
    """The claim of a machine that is gone lives as long as its own version has said."""
    deployment = deploy(Code({**BY_ORDER, "lease": 100}), Code({**BY_ORDER, **after}))
    assert deployment.carried(5) == KEPT
    left: list[float] = []

    def publish() -> Any:
        (record,) = [each for each in store.records() if each.status is Status.INPROGRESS]
        left.append(record.held_until - clock.now())
        return deployment.old.publish("ord-1", 5)

    deployment.while_running(publish, "ord-1", 5)
    assert left == [pytest.approx(100, abs=1)]


def charge_in(order_id: Any, cents: int, currency: str = "EUR") -> None:
    """Have one parameter more."""


@row("A parameter is added, with a default")
def test_a_parameter_more(deploy: Deploy) -> None:
    """Old messages have the default; old workers fail the new ones, whose keys stay free."""
    deployment = deploy(OLD, Code(BY_ORDER, charge_in))
    assert deployment.carried(5) == KEPT
    deployment.old.publish("queued", 5)
    deployment.new.run_next()
    assert deployment.new.runs[-1] == ("queued", 5)
    too_new = deployment.new.publish("ord-1", 5, "USD")
    deployment.old.run_next()
    assert isinstance(too_new.result, TypeError)
    assert deployment.new.deliver("ord-1", 5, "USD").result == ["new", "ord-1", 5, "USD"]


@row("A parameter is added, with a default")
def test_a_key_that_names_the_new_parameter(deploy: Deploy) -> None:
    """Then it selects another value."""
    assert deploy(OLD, Code({"key": "[order_id, currency]"}, charge_in)).carried(5) == LOST


@row("A parameter is added, with a default")
def test_a_member_of_a_group_with_a_key_of_its_own(deploy: Deploy) -> None:
    """Its key is one of a call, and all of its arguments are compared, but not between two signatures."""
    deployment = deploy(Code({}), Code({}, charge_in))
    options = {"idempotency_key": "ord-1", "group_id": "group"}
    deployment.old.deliver("ord-1", 5, **options)
    duplicate = deployment.old.publish("ord-1", 5, **options)
    deployment.new.run_next()
    assert duplicate.result == ["old", "ord-1", 5]


def charge_all(order_id: Any) -> None:
    """Have one parameter less."""


@row("A parameter is removed")
def test_a_parameter_less(deploy: Deploy) -> None:
    """Old messages fail, and so do those of finished keys; new ones get the old outcome."""
    deployment = deploy(OLD, Code(BY_ORDER, charge_all))
    deployment.old.deliver("ord-1", 5)
    for order in ("ord-1", "ord-2"):
        failed = deployment.old.publish(order, 5)
        deployment.new.run_next()
        assert isinstance(failed.result, TypeError)
    assert deployment.new.deliver("ord-1").result == ["old", "ord-1", 5]
    assert deployment.new.deliver("ord-2").result == ["new", "ord-2"]


def charge_number(number: Any, cents: int) -> None:
    """Have another name for the first parameter."""


@row("A parameter is renamed, and `key` with it")
def test_another_name_of_a_parameter(deploy: Deploy) -> None:
    """By position an old message is as good as a new one; by name it fails."""
    deployment = deploy(OLD, Code({"key": "number"}, charge_number))
    assert deployment.carried(5) == KEPT
    by_name = deployment.old.publish(kwargs={"order_id": "ord-1", "cents": 5})
    deployment.new.run_next()
    assert isinstance(by_name.result, TypeError)


def charge_reordered(cents: int, order_id: Any) -> None:
    """Have the parameters in another order."""


@row("Parameters change places")
def test_another_order(deploy: Deploy) -> None:
    """By position the old messages' values are exchanged, and so is the key; by name nothing changes."""
    deployment = deploy(OLD, Code(BY_ORDER, charge_reordered))
    deployment.old.deliver("ord-1", 5)
    duplicate = deployment.old.publish("ord-1", 5)
    deployment.new.run_next()
    # It was finished, and the body takes its number for the cents.
    assert (deployment.new.runs, duplicate.state) == ([("ord-1", 5)], "SUCCESS")
    by_name = {"kwargs": {"order_id": "ord-1", "cents": 5}}
    deployment.old.deliver(**by_name)
    duplicate = deployment.old.publish(**by_name)
    deployment.new.run_next()
    assert duplicate.result[0] == "old"


PICKLED = (("accept_content", ("json", "pickle")),)


@row("`codec`")
@pytest.mark.parametrize(("before", "after"), [("json", "pickle"), ("pickle", "json"), ("json", "none")])
def test_another_codec(deploy: Deploy, before: str, after: str) -> None:
    """A result is read as it was written, if the app accepts that."""
    codes = [Code({**BY_ORDER, "codec": codec}, conf=PICKLED) for codec in (before, after)]
    assert deploy(*codes).carried(5) == KEPT


@row("`codec`")
def test_a_codec_that_is_not_accepted_any_more(deploy: Deploy) -> None:
    """The replay fails, and the body does not run."""
    deployment = deploy(Code({**BY_ORDER, "codec": "pickle"}, conf=PICKLED), OLD)
    deployment.old.deliver("ord-1", 5)
    assert isinstance(deployment.new.deliver("ord-1", 5).result, ResultUnavailableError)
    assert deployment.new.runs == []


def fail() -> None:
    """Fail, so that the key has no outcome."""
    raise ValueError


def leave_no_outcome(version: Version, order: str) -> None:
    """Have a run of a version fail."""
    version.publish(order, 5)
    version.during = fail
    version.run_next()


class Declined(Exception):  # noqa: N818 - named as users name theirs
    """A final failure."""


def decline(order_id: Any, cents: int) -> None:
    """Fail for good."""
    raise Declined(order_id)


@row("`receipts`")
@pytest.mark.parametrize("given", ["old", "new", "both"])
def test_receipts_that_are_given_or_dropped(deploy: Deploy, given: str) -> None:
    """They are no part of a key, nor of a record."""
    with_receipts = Code({**BY_ORDER, "receipts": MemoryReceipts()})
    codes = [with_receipts if given in (name, "both") else OLD for name in ("old", "new")]
    assert deploy(*codes).carried(5) == KEPT


@row("`receipts`")
@pytest.mark.parametrize(("new", "is_repeated"), [("the same", False), ("another", True), ("none", True)])
def test_rows_without_a_recorded_outcome(deploy: Deploy, new: str, is_repeated: bool) -> None:
    """The next run is spared only where the receipt is looked for that was committed with them."""
    receipts = MemoryReceipts()
    policies = {"the same": {"receipts": receipts}, "another": {"receipts": MemoryReceipts()}, "none": {}}
    deployment = deploy(Code({**BY_ORDER, "receipts": receipts}), Code({**BY_ORDER, **policies[new]}))
    receipts.after_commit.append(lost(ConnectionError("the server is gone"), is_certain=False))
    receipts.at_begin = [None, StoreUnavailableError("the database does not answer")]
    published = deployment.old.publish("ord-1", 5)
    deployment.old.run_next()
    assert (published.state, len(receipts.rows)) == ("PENDING", 1)
    deployment.new.run_next()
    assert published.result == ["new" if is_repeated else "old", "ord-1", 5]
    assert len(deployment.new.runs) == is_repeated


def stepping(called: list[Any], *steps: tuple[str, Any]) -> Callable[[Any, int], None]:
    """Return a body that has steps of these names and arguments, and notes which functions are called."""

    def body(order_id: Any, cents: int) -> None:
        for name, argument in steps:
            current_task.idempotency.step(name, called.append, (name, argument))

    return body


@row("[Steps](steps.md) are inserted, removed or moved")
def test_other_steps(deploy: Deploy) -> None:
    """What is kept is found by its name, wherever it stands now; what has no name any more is ignored."""
    called: list[Any] = []
    old = stepping(called, ("charge", 5), ("number", 1), ("mail", "ann"))
    new = stepping(called, ("stock", 1), ("mail", "ann"), ("charge", 5))
    deployment = deploy(Code(BY_ORDER, old), Code(BY_ORDER, new))
    leave_no_outcome(deployment.old, "ord-1")
    assert deployment.new.deliver("ord-1", 5).state == "SUCCESS"
    assert called == [("charge", 5), ("number", 1), ("mail", "ann"), ("stock", 1)]


@row("A step is renamed, or gets other arguments")
@pytest.mark.parametrize(("step", "repeated"), [(("bill", 5), [("bill", 5)]), (("charge", 6), [])])
def test_another_step_for_the_same_effect(deploy: Deploy, step: tuple[str, Any], repeated: list[Any]) -> None:
    """Under a new name it runs again, and has another key downstream; under the old one its inputs must be equal."""
    called: list[Any] = []
    deployment = deploy(Code(BY_ORDER, stepping(called, ("charge", 5))), Code(BY_ORDER, stepping(called, step)))
    leave_no_outcome(deployment.old, "ord-1")
    result = deployment.new.deliver("ord-1", 5).result
    assert called == [("charge", 5), *repeated]
    assert isinstance(result, StepMismatchError) is not bool(repeated)
    assert (step_key("ord-1", step[0]) == step_key("ord-1", "charge")) is (step[0] == "charge")


@row("A part of the body becomes a step")
def test_a_part_that_becomes_a_step(deploy: Deploy) -> None:
    """The old code has kept nothing of what its run has done."""
    called: list[Any] = []

    def at_once(order_id: Any, cents: int) -> None:
        called.append(("charge", 5))

    deployment = deploy(Code(BY_ORDER, at_once), Code(BY_ORDER, stepping(called, ("charge", 5))))
    leave_no_outcome(deployment.old, "ord-1")
    assert deployment.new.deliver("ord-1", 5).state == "SUCCESS"
    assert called == [("charge", 5)] * 2


@row("`store_failures`")
@pytest.mark.parametrize(("listed", "raised"), [((Declined,), "Declined"), ((), "StoredFailureError")])
def test_other_final_failures(deploy: Deploy, listed: Any, raised: str) -> None:
    """The key stays failed."""
    old = Code({**BY_ORDER, "store_failures": Declined}, decline)
    deployment = deploy(old, Code({**BY_ORDER, "store_failures": listed}))
    deployment.old.deliver("ord-1", 5)
    assert type(deployment.new.deliver("ord-1", 5).result).__name__ == raised
    assert deployment.new.runs == []


@row("`on_busy` or `wait_timeout`")
@pytest.mark.parametrize("on_busy", ["raise", "skip", "wait"])
def test_to_defer(deploy: Deploy, on_busy: str) -> None:
    """Whatever the old version did with its duplicates."""
    assert deploy(Code({**BY_ORDER, "on_busy": on_busy, "wait_timeout": 0}), OLD).carried(5) == KEPT


@row("`on_busy` or `wait_timeout`")
@pytest.mark.parametrize(("on_busy", "state"), [("skip", "PENDING"), ("raise", "FAILURE")])
def test_a_deferred_copy_under_the_new_rule(deploy: Deploy, on_busy: str, state: str) -> None:
    """One that the old version deferred is dropped or fails, if the key still runs when it is back."""
    deployment = deploy(OLD, Code({**BY_ORDER, "on_busy": on_busy}))

    def defer() -> Any:
        published = deployment.old.publish("ord-1", 5)
        other = deploy(OLD, OLD).old
        other.run_next()
        assert deployment.new.worker.waiting() == 1
        return published

    copy = deployment.while_running(defer, "ord-1", 5)
    assert (copy.state, deployment.new.worker.waiting(), deployment.new.runs) == (state, 0, [])
    if state == "FAILURE":
        assert isinstance(copy.result, InProgressError)


@row("`at_publish` or `reserve`")
@pytest.mark.parametrize(
    ("before", "after"),
    [({}, {"at_publish": "join"}), ({"at_publish": "raise", "reserve": 10}, {}), ({}, {"at_publish": "raise"})],
    ids=str,
)
def test_another_way_to_publish(deploy: Deploy, before: dict[str, Any], after: dict[str, Any]) -> None:
    """A delivery takes over what was reserved for it, whether or not its version reserves."""
    deployment = deploy(Code({**BY_ORDER, "reserve": before.get("reserve", 300)}), Code({**BY_ORDER, **after}))
    assert deployment.carried(5) == KEPT


@row("`on_store_error`, `missing_key`, `max_crashes`, `on_replay`, `cache` or `silenced_checks`")
@pytest.mark.parametrize(
    "changed",
    [
        *({"on_store_error": "raise"}, {"missing_key": "run"}, {"max_crashes": 1}, {"on_replay": max}, {"cache": 60}),
        {"silenced_checks": ["time-limit-missing"]},
    ],
    ids=str,
)
def test_any_other_option(deploy: Deploy, changed: dict[str, Any]) -> None:
    """It is no part of a key, nor of what is stored."""
    after = {name: (lambda result, record: result) if name == "on_replay" else each for name, each in changed.items()}
    assert deploy(OLD, Code({**BY_ORDER, **after})).carried(5) == KEPT


@row("The table, or the names of its attributes")
def test_another_table(deploy: Deploy, store: MemoryStore, clock: FakeClock) -> None:
    """It is empty, unless the old items were copied while nobody worked."""
    other = MemoryStore(clock=clock)
    deployment = deploy(OLD, Code(BY_ORDER, store=other))
    assert deployment.carried(5) == LOST
    deployment.old.deliver("copied", 5)
    other._records.update(store._records)
    assert deployment.new.deliver("copied", 5).result[0] == "old"


@row("The app's name, in a table with `sort_key_attr`")
def test_another_name_of_the_app() -> None:
    """It is in the partition key, unless that is given."""
    layout: dict[str, Any] = {"key_attr": "pk", "sort_key_attr": "sk"}
    names = ("shop", "billing")
    old, new = (DynamoDBStore("records", **layout).for_app(name).schema.key("k") for name in names)
    assert old != new
    pinned = DynamoDBStore("records", **layout, static_pk_value="idempotency#shop")
    assert pinned.for_app("billing").schema.key("k") == old


@row("A plain task becomes an `IdempotentTask`")
def test_a_task_that_was_plain(deploy: Deploy) -> None:
    """Queued messages are guarded; of what has run there is no record."""
    deployment = deploy(Code({}, base=Task), OLD)
    deployment.old.deliver("ord-1", 5)
    for order in ("ord-1", "ord-1", "ord-2", "ord-2"):
        deployment.old.publish(order, 5)
        deployment.new.run_next()
    assert deployment.new.runs == [("ord-1", 5), ("ord-2", 5)]


@row("The version of this library")
def test_records_of_another_version(deploy: Deploy, store: MemoryStore) -> None:
    """One without what was added since is replayed; a codec of a later version fails, and does not run the body."""
    deployment = deploy(OLD, OLD)
    deployment.old.deliver("older", 5)
    deployment.old.deliver("newer", 5)
    older, newer = store.records()
    bare = replace(older, process=None, worker=None, claimed_at=None, validated_by=None, continuation=None)
    store._records.update({older.key: bare, newer.key: replace(newer, codec="tomorrow's")})
    assert deployment.new.deliver("older", 5).result[0] == "old"
    assert isinstance(deployment.new.deliver("newer", 5).result, ResultUnavailableError)
    assert deployment.new.runs == []
