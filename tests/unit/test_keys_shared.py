"""An explicit key that a group or a chord hands to each of its members: it names one call."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature

from idempotent_tasks import ConfigurationError, PayloadMismatchError
from idempotent_tasks.testing import MemoryStore
from tests.support.inline import InlineWorker
from tests.support.shop import make

KEY = {"idempotency_key": "req-1"}
HEADERS = {"headers": {"idempotency_key": "req-1"}}


class Charges:
    """A guarded task that notes the orders it charged."""

    def __init__(self, app: Celery, worker: InlineWorker, **options: Any) -> None:
        self.orders: list[Any] = []
        self.worker = worker

        def charge(order: Any, cents: int = 5) -> Any:
            self.orders.append(order)
            return [order, cents]

        self.task = make(app, charge, **options)

    def results(self) -> list[Any]:
        """Run the messages one by one; return what each gave, or the type of what it raised."""
        found = []
        while self.worker.waiting():
            message = self.worker.run_next()
            result = self.worker.result(message.headers["id"])
            found.append(type(result) if isinstance(result, Exception) else result)
        return found


@pytest.fixture
def charges(app: Celery, worker: InlineWorker) -> Charges:
    """A task that has charged nothing."""
    return Charges(app, worker)


GROUPS: dict[str, Callable[[Any], Signature]] = {
    "option": lambda task: group(task.s("a"), task.s("b")),
    "set": lambda task: group(task.s("a"), task.s("b")).set(**KEY),
    "of chains": lambda task: group(chain(task.s("a"), task.si("x")), chain(task.s("b"), task.si("y"))),
    "in a group": lambda task: group(group(task.s("a"), task.s("b"))),
}


@pytest.mark.parametrize("options", [KEY, HEADERS], ids=["idempotency_key", "headers"])
@pytest.mark.parametrize("shape", GROUPS)
def test_members_with_other_arguments_fail(charges: Charges, shape: str, options: dict[str, Any]) -> None:
    """The second call does not get the first one's result: its order was never charged, and it says so."""
    GROUPS[shape](charges.task).apply_async(**({} if shape == "set" else options))
    first, second = charges.results()[:2]
    assert (first, second) == (["a", 5], PayloadMismatchError)
    assert "b" not in charges.orders


def test_the_error_says_why(charges: Charges, worker: InlineWorker) -> None:
    """And what to do; it quotes no argument."""
    group(charges.task.s("a"), charges.task.s("b")).apply_async(**KEY)
    worker.run_next()
    error = worker.result(worker.run_next().headers["id"])
    assert "given to a group or chord is handed to each of its members" in str(error)
    assert ".set(idempotency_key=...)" in str(error)


def test_members_with_equal_arguments_share_one_effect(charges: Charges) -> None:
    """However they are spelled, and whenever they come."""
    for _ in range(2):
        group(charges.task.s("a"), charges.task.s(order="a", cents=5)).apply_async(**KEY)
    assert (charges.results(), charges.orders) == ([["a", 5]] * 4, ["a"])


def test_members_with_keys_of_their_own(charges: Charges, app: Celery) -> None:
    """Each is one call, in a group or out of it, where only the key counts."""
    group(charges.task.s(each).set(idempotency_key=each) for each in "ab").apply_async()
    charges.task.apply_async(("a", 7), idempotency_key="a")
    assert (charges.results(), charges.orders) == ([["a", 5], ["b", 5], ["a", 5]], ["a", "b"])


def test_a_policy_that_validates_says_what_counts(app: Celery, worker: InlineWorker) -> None:
    """A task's own ``validate`` stays: members that agree in it share one effect on purpose."""
    charges = Charges(app, worker, idempotency={"validate": "cents"})
    group(charges.task.s("a"), charges.task.s("b")).apply_async(**KEY)
    assert (charges.results(), charges.orders) == ([["a", 5]] * 2, ["a"])


def test_a_reservation_is_the_deliverys_own(app: Celery, worker: InlineWorker) -> None:
    """Under ``at_publish`` the producer digests the same arguments: the first member's delivery takes its key over."""
    charges = Charges(app, worker, idempotency={"at_publish": "join"})
    group(charges.task.s("a"), charges.task.s("b")).apply_async(**KEY)
    assert charges.results() == [["a", 5], PayloadMismatchError]


def test_a_chain_gives_its_key_to_its_first_step_alone(charges: Charges) -> None:
    """Nothing is shared, so nothing is compared."""
    for order in "ab":
        chain(charges.task.s(order), charges.task.si("next")).apply_async(**KEY)
    assert charges.results() == [["a", 5], ["a", 5], ["next", 5], ["next", 5]]


@pytest.mark.parametrize("options", [KEY, HEADERS], ids=["idempotency_key", "headers"])
@pytest.mark.parametrize("body", ["plain", "same"])
@pytest.mark.parametrize("header", ["tasks", "chains", "group in a chain"])
def test_a_chord_is_refused_before_anything_is_published(
    app: Celery, charges: Charges, body: str, header: str, options: dict[str, Any]
) -> None:
    """Its body would have the key too, without effect where it is not guarded, or with a member's result."""
    charge = charges.task
    total = charge.s() if body == "same" else app.task(sum_up, name="shop.total", shared=False).s()
    members = [charge.s("a"), charge.s("b")]
    if header == "group in a chain":
        canvas = chain(group(members), total)
    else:
        canvas = chord([chain(each, charge.si("x")) for each in members] if header == "chains" else members, total)
    with pytest.raises(ConfigurationError, match=r"given to a whole chord.*\.set\(idempotency_key=\.\.\.\)"):
        canvas.apply_async(**options)
    assert (charges.worker.waiting(), charges.orders) == (0, [])


def test_a_chord_by_name_fails_before_a_body_runs(app: Celery, charges: Charges) -> None:
    """A producer that does not know the tasks cannot refuse it: the workers do, and charge nothing."""
    producer = Celery("producer", broker="memory://", backend="cache+memory://", set_as_current=False)
    producer.conf.task_default_queue = app.conf.task_default_queue
    members = [producer.signature("shop.charge", (order,)) for order in "ab"]
    chord(members, producer.signature("shop.charge"), app=producer).apply_async(**KEY)
    assert charges.results() == [ConfigurationError, ConfigurationError]
    assert charges.orders == []


def test_a_chord_whose_calls_have_keys_of_their_own(app: Celery, worker: InlineWorker, charges: Charges) -> None:
    """Also where the body, of another guarded task, has that of a member."""
    confirm = make(app, sum_up, name="shop.confirm")
    chord([charges.task.s("a").set(**KEY)], confirm.s().set(**KEY)).apply_async()
    assert charges.results() == [["a", 5], 1]


def test_arguments_of_no_written_form(app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
    """They cannot be compared, so a shared key is an error, which names neither them nor an expression."""
    app.conf.update(task_serializer="pickle", accept_content=["pickle", "json"])
    charges = Charges(app, worker)
    group(charges.task.s({1, object})).apply_async(**KEY)
    message = worker.run_next()
    error = worker.result(message.headers["id"])
    assert "cannot be compared with those of the other members" in str(error)
    assert store.records() == []


def sum_up(results: list[Any]) -> int:
    """Be a chord's body."""
    return len(results)
