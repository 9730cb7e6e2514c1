"""``downstream``: the key for other systems is made of the selected value alone, and outlives a task's name and key."""

import inspect
import logging
from collections.abc import Callable
from itertools import repeat
from typing import Any
from uuid import UUID, uuid5

import pytest
from celery import Celery, Task
from hypothesis import given
from hypothesis import strategies as st

from idempotent_tasks import Idempotency, IdempotentTask, KeyEncodingError, MissingKeyError
from idempotent_tasks.core.canonical import canonical
from idempotent_tasks.core.keys import Selector, downstream_key
from idempotent_tasks.events import Event
from idempotent_tasks.testing import MemoryStore
from tests.support.inline import InlineWorker
from tests.support.shop import SECRET, charge, deliver
from tests.support.stores import FaultyStore, down

#: As `docs/how-to/keys.md` names it; providers keep keys that are made with it.
NAMESPACE = UUID("6f0166d2-f434-41b1-b57a-e6da11cdda40")
CHARGE = "['charge', order_id]"
OF_ORD_17 = "bb72704b-8a83-591f-b915-d427dbad0537"

Declare = Callable[..., Task]


class Provider:
    """A provider that charges once for each key that it is given."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}

    def charge(self, key: str, cents: int) -> None:
        """Charge, unless the key is known."""
        self.charges.setdefault(key, cents)


@pytest.fixture
def declare(app: Celery) -> Declare:
    """Declare a task that returns its keys: the record's, and the one for other systems."""

    def declare(of: Celery = app, name: str = "shop.charge", **policy: Any) -> Task:
        def body(self: Task, order_id: str, cents: int = 5) -> list[str | None]:
            return [self.idempotency.key, self.idempotency.downstream_key]

        idempotency = Idempotency(**{"downstream": CHARGE, **policy})
        return of.task(body, base=IdempotentTask, bind=True, name=name, shared=False, idempotency=idempotency)

    return declare


def of(source: Any, value: Any) -> str:
    """Return the downstream key of a delivery of ``charge(order)``."""
    return downstream_key(deliver(value), Selector.of("downstream", source), inspect.signature(charge))


@pytest.mark.parametrize(
    ("source", "value", "key"),
    [
        ("order", "ord-17", "66545eb2-229b-5688-9621-1ab310550016"),
        ("['charge', order]", "ord-17", "bb72704b-8a83-591f-b915-d427dbad0537"),
        (lambda order, **_: ("charge", order), "ord-17", "bb72704b-8a83-591f-b915-d427dbad0537"),
        ("['charge', order.id]", {"id": 17}, "aa0702ca-0994-5db5-a53d-51a1d009dd3c"),
        ("{refund: order.id, part: order.part}", {"id": "ord-17", "part": 2}, "54d17854-8974-5c8b-a318-ecb6ac938b24"),
        ("order", "größe\ud800", "63a256b1-e0f6-5c05-999e-7526d772d58b"),
    ],
)
def test_a_key_stays_what_it_is(source: Any, value: Any, key: str) -> None:
    """Providers know these: another value here is a second charge there."""
    assert of(source, value) == key


@given(st.recursive(st.integers() | st.text(min_size=1), st.lists, max_leaves=5))
def test_a_key_is_a_uuid_of_the_values_form(value: Any) -> None:
    """Anyone can compute it, in any language."""
    name = f'["charge",{canonical(value)}]'
    assert of(lambda order, **_: ["charge", order], value) == str(uuid5(NAMESPACE, name))


@pytest.mark.parametrize(
    ("changed", "call"),
    [
        ({"name": "billing.charge", "prefix": None}, {}),
        ({"prefix": "charges"}, {}),
        ({"key": "[order_id, cents]"}, {}),
        ({"key": None}, {"task_id": "a1"}),
        ({"powertools": True}, {}),
        ({"powertools": "sha256", "downstream": lambda order_id, **_: ["charge", order_id]}, {}),
        ({"expires": 0}, {"task_id": "a1"}),
        (Idempotency.exclusive().given, {"task_id": "a1"}),
        ({"of": Celery("billing", set_as_current=False), "name": "billing.charge", "prefix": None}, {}),
        ({}, {"idempotency_key": "request-7f3a"}),
    ],
    ids=["name", "prefix", "key", "no key", "powertools", "hash", "lock", "exclusive", "app", "explicit"],
)
def test_what_changes_the_records_key_leaves_it(
    declare: Declare, store: MemoryStore, changed: dict[str, Any], call: dict[str, Any]
) -> None:
    """A provider that was given the one key recognises the other run."""
    if "of" in changed:
        changed["of"].conf.idempotency_store = store
    before = declare(key="order_id").apply(("ord-17",)).get()
    after = declare(**{"key": "order_id", "name": "shop.again", "prefix": "shop.charge", **changed})
    key, downstream = after.apply(("ord-17",), **call).get()
    assert key != before[0]
    assert downstream == before[1] == OF_ORD_17


@pytest.mark.parametrize(("downstream", "charges"), [(CHARGE, 1), (None, 2)])
def test_a_task_that_was_renamed_and_keyed_anew_charges_once(
    app: Celery, worker: InlineWorker, downstream: str | None, charges: int
) -> None:
    """The body charged and its outcome was lost; the version that is deployed then runs it again."""
    provider = Provider()

    def body(self: Task, order_id: str, cents: int, fail: bool = False) -> None:
        provider.charge(self.idempotency.downstream_key, cents)
        if fail:
            raise ConnectionError

    def version(name: str, key: str) -> Task:
        policy = Idempotency(key=key, downstream=downstream)
        return app.task(body, base=IdempotentTask, bind=True, name=name, shared=False, idempotency=policy)

    version("shop.charge", "order_id").delay("ord-17", 4200, fail=True)
    worker.run_next()
    version("billing.charge", "[order_id, cents]").delay("ord-17", 4200)
    worker.run_next()
    assert len(provider.charges) == charges


def test_without_the_option_it_is_the_records_key(declare: Declare) -> None:
    """Also of a task whose key is a lock, where that is the task id's."""
    for policy in ({"key": "order_id"}, {}, {"key": "order_id", "expires": 0}):
        key, downstream = declare(downstream=None, name=f"shop.{len(policy)}", **policy).apply(("ord-17",)).get()
        assert key == downstream


def test_a_retry_has_the_same(app: Celery, worker: InlineWorker) -> None:
    """As a redelivery has."""
    keys: list[str | None] = []

    @app.task(
        base=IdempotentTask, bind=True, shared=False, name="shop.charge", idempotency=Idempotency(downstream=CHARGE)
    )
    def charge(self: Task, order_id: str) -> None:
        keys.append(self.idempotency.downstream_key)
        if len(keys) == 1:
            raise self.retry(countdown=0)

    charge.delay("ord-17")
    worker.run_next()
    worker.run_next()
    assert keys == [OF_ORD_17, OF_ORD_17]


def test_code_that_calls_the_task_passes_no_key(declare: Declare) -> None:
    """Nobody says that two such calls are one piece of work."""
    assert declare()("ord-17") == [None, None]


def test_it_must_select_something(declare: Declare, store: MemoryStore, seen: list[Event]) -> None:
    """Before anything is claimed or published: calls without a key must not share one."""
    policy: dict[str, Any] = {"downstream": "['charge', order_id.number]", "at_publish": "join", "key": "cents"}
    task = declare(**policy)
    with pytest.raises(MissingKeyError, match=r"downstream=.* selects nothing for part 2 of a list") as caught:
        task.apply(({"id": SECRET},)).get()
    with pytest.raises(MissingKeyError):
        task.delay({"id": SECRET})
    assert SECRET not in str(caught.value)
    assert (store.records(), seen) == ([], [])


def test_it_must_have_a_form(declare: Declare) -> None:
    """As a key; the error names the option, and no argument."""
    with pytest.raises(KeyEncodingError, match=r"downstream=.* selects a builtins.object at it\[1\]") as caught:
        declare(downstream=lambda order_id, **_: [order_id, object()]).apply((SECRET,)).get()
    assert SECRET not in str(caught.value)


def test_powertools_does_not_make_parts_optional(declare: Declare) -> None:
    """What Powertools accepts in the record's key would be one key for many effects."""
    task = declare(powertools=True, key="[order_id.number, cents]", downstream="['charge', order_id.number]")
    with pytest.raises(MissingKeyError, match="downstream="):
        task.apply(({"id": 17},)).get()


@pytest.mark.parametrize(
    ("policy", "keys"),
    [
        ({"downstream": "['charge', order_id.number]"}, [None, None]),
        ({"key": "order_id.number"}, [None, OF_ORD_17]),
        ({"key": "order_id.number", "downstream": "['charge', order_id.number]"}, [None, None]),
        ({"key": "order_id.number", "downstream": None}, [None, None]),
    ],
)
def test_a_run_without_one_of_its_keys(
    app: Celery, declare: Declare, caplog: pytest.LogCaptureFixture, policy: dict[str, Any], keys: Any
) -> None:
    """It is unguarded where the policy says so, and a provider is still given what can be selected."""
    task = declare(missing_key="run", **policy)
    with caplog.at_level(logging.DEBUG):
        assert task.apply(("ord-17",)).get() == keys
    assert "ord-17" not in caplog.text
    disabled = Celery("other", set_as_current=False)
    disabled.conf.update(idempotency_store="memory://", idempotency_disabled=True)
    assert declare(of=disabled, **policy).apply(("ord-17",)).get() == keys


def test_a_key_without_a_form_is_an_error_beside_a_missing_one(app: Celery, declare: Declare) -> None:
    """Except under the kill switch, where the body runs as plain Celery's does."""
    task = declare(key="order_id.number", downstream=lambda order_id, **_: [order_id, object()], missing_key="run")
    with pytest.raises(KeyEncodingError, match="downstream="):
        task.apply(("ord-17",)).get()


def test_a_key_without_a_form_stops_no_disabled_body(app: Celery, declare: Declare) -> None:
    """Nor does one beside a missing key."""
    app.conf.idempotency_disabled = True
    for number, policy in enumerate(({}, {"key": "order_id.number"})):
        task = declare(name=f"shop.{number}", downstream=lambda **_: object(), **policy)
        assert task.apply(("ord-17",)).get() == [None, None]


@pytest.mark.parametrize("conf", [{"idempotency_disabled": True}, {"idempotency_on_store_error": "run"}], ids=str)
def test_an_unguarded_run_passes_it_too(app: Celery, declare: Declare, store: MemoryStore, conf: Any) -> None:
    """So that the provider knows an effect of a run that the guard has not seen."""
    app.conf.update(idempotency_store=FaultyStore(store, claim=repeat(down())), **conf)
    key, downstream = declare(key="order_id").apply(("ord-17",)).get()
    assert (key.partition("#")[0], downstream) == ("shop.charge", OF_ORD_17)
