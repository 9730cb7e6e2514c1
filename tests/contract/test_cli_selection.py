"""Records that are named by a task and the arguments of a call, as an operator knows them."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import boto3
import pytest
from celery import Celery
from click.testing import CliRunner, Result
from kombu.utils.json import dumps

from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask, RecordNotFoundError
from idempotent_tasks.cli import idempotency
from idempotent_tasks.core.delivery import Delivery
from idempotent_tasks.core.records import Granted
from idempotent_tasks.messaging.claim_request import claim_request
from idempotent_tasks.settings import settings_of
from tests.contract.conftest import MakeStore
from tests.support.guarding import request_by
from tests.testbed.wire import Wire, wire_to

Run = Callable[..., Result]

SECRET = "4242-4242-4242-4242"


def charge(order: Any, currency: str = "EUR", *lines: int, note: str = "") -> None:
    """A task body."""


def refund(order: Any, reason: str, amount: int) -> None:
    """A task body without defaults."""


def ship(**order: Any) -> None:
    """A task body that takes anything."""


def sweep() -> None:
    """A task body that runs one at a time."""


def order_of(order: Any, *_: Any, **__: Any) -> Any:
    """A key that is a callable."""
    return order and order.get("id")


#: Of each task: the body and its policy.
TASKS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "charge": (charge, {"key": "order.id"}),
    "charge-all": (charge, {"key": "[order.id, order.customer || 'none', currency]"}),
    "charge-whole": (charge, {"key": "order"}),
    "charge-called": (charge, {"key": order_of, "prefix": "called"}),
    "charge-validated": (refund, {"key": "order.id", "validate": "[reason, amount]"}),
    "charge-downstream": (refund, {"key": "order.id", "downstream": "['charge', order.id, reason]"}),
    "refund": (refund, {"key": "[order.id, reason]"}),
    "refund-all": (refund, {"key": "@"}),
    "ship": (ship, {"key": "order.id", "prefix": "shop-shipping"}),
    "powertools": (refund, {"key": "[order.id, reason]", "powertools": True}),
    "by-id": (charge, {}),
    "sweep": (sweep, Idempotency.exclusive().given),
    "rebuild": (charge, Idempotency.exclusive(key="order.id").given),
}


@pytest.fixture
def app(dynamodb: DynamoDBStore) -> Celery:
    """An app with this test's table, and a task of each kind."""
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    app.conf.idempotency_store = dynamodb
    for name, (body, policy) in TASKS.items():
        app.task(body, name=f"shop.{name}", base=IdempotentTask, shared=False, idempotency=Idempotency(**policy))
    app.task(charge, name="shop.plain", shared=False)
    return app


@pytest.fixture
def run(app: Celery) -> Run:
    """Run a command as ``celery -A shop idempotency`` does."""
    return lambda *words: CliRunner().invoke(idempotency, list(words), obj=SimpleNamespace(app=app))


@pytest.fixture
def claimed(app: Celery, dynamodb: DynamoDBStore) -> Callable[..., str]:
    """Claim the key of a delivery as a worker does, and return it."""

    def claimed(name: str, *args: Any, key: str | None = None, **kwargs: Any) -> str:
        task = app.tasks[f"shop.{name}"]
        delivery = Delivery(task=task.name, task_id="id-1", args=args, kwargs=kwargs, explicit_key=key)
        request = claim_request(delivery, task.policy_under(settings_of(app)), task.run_signature)
        for each in request.parts:
            assert isinstance(dynamodb.claim(each), Granted)
        return request.key if request.lock is None else request.lock.key

    return claimed


ORDER = {"id": 17, "customer": "ann"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("charge", [ORDER], {}), ["--args", '[{"id": 17}]']),
        (("charge", [ORDER, "USD"], {}), ["--kwargs", '{"order": {"id": 17}}']),
        (("charge", [ORDER], {"note": "x"}), ["--arg", 'order={"id": 17}']),
        (("charge", [ORDER], {}), ["--arg", "order.id=17"]),
        (("charge", [{"id": "17"}], {}), ["--arg", 'order.id="17"']),
        (("charge", [{"id": "ord-17"}], {}), ["--arg", "order.id=ord-17"]),
        (("charge", [{"id": "NaN"}], {}), ["--arg", "order.id=NaN"]),
        (("charge", [{"id": "a=b"}], {}), ["--arg", "order.id=a=b"]),
        (("charge-all", [ORDER], {}), ["--arg", "order.id=17", "--arg", "order.customer=ann"]),
        (("charge-all", [{"id": 17}, "USD"], {}), ["--arg", 'order={"id": 17}', "--arg", "currency=USD"]),
        (("charge-whole", [ORDER], {}), ["--arg", 'order={"id": 17, "customer": "ann"}']),
        (("charge-called", [ORDER], {}), ["--arg", "order.id=17"]),
        (("charge-called", [ORDER, "USD", 1, 2], {}), ["--args", '[{"id": 17}, "USD", 1, 2]']),
        (("charge-validated", [ORDER, "broken", 5], {}), ["--arg", "order.id=17"]),
        (("charge-downstream", [ORDER, "broken", 5], {}), ["--arg", "order.id=17"]),
        (("refund", [ORDER, "broken", 5], {}), ["--arg", "order.id=17", "--arg", "reason=broken"]),
        (("refund-all", [ORDER, "broken", 5], {}), ["--args", json.dumps([ORDER, "broken", 5])]),
        (("ship", [], {"id": 17, "by": "sea"}), ["--arg", "id=17"]),
        (("powertools", [ORDER, "broken", 5], {}), ["--arg", "order.id=17", "--arg", "reason=broken"]),
        (("sweep", [], {}), []),
        (("rebuild", [ORDER], {}), ["--arg", "order.id=17"]),
        (("charge", [{"id": UUID(int=17)}], {}), ["--args", dumps([{"id": UUID(int=17)}])]),
    ],
)
def test_a_call_by_what_is_known_of_it(
    run: Run, claimed: Callable[..., str], wire: Wire, call: tuple[str, list[Any], dict[str, Any]], words: list[str]
) -> None:
    """The record is the one that a delivery with all its arguments has claimed; one read finds it."""
    name, args, kwargs = call
    key = claimed(name, *args, **kwargs)
    wire.clear()
    result = run("show", "--json", "--task", f"shop.{name}", *words)
    assert json.loads(result.stdout)["key"] == key, result.output
    assert wire.operations() == ["GetItem"]


@pytest.mark.parametrize("name", ["charge", "by-id", "powertools"])
def test_an_explicit_key(run: Run, claimed: Callable[..., str], name: str) -> None:
    """A call that was given its own key is found by that and the task, without any arguments."""
    key = claimed(name, ORDER, "broken", 5, key="ord-17")
    result = run("show", "--json", "--task", f"shop.{name}", "--key", "ord-17")
    assert json.loads(result.stdout)["key"] == key, result.output


def test_in_a_composite_table(make_store: MakeStore, app: Celery, run: Run, claimed: Callable[..., str]) -> None:
    """The sort key has the key then, and the partition the store's value."""
    store = make_store(sort_key_attr="sort", static_pk_value="tenant-1")
    store.connection.request("delete_table", TableName=store.table)
    store.create_table()
    app.conf.idempotency_store = store
    task = app.tasks["shop.charge"]
    delivery = Delivery(task=task.name, task_id="id-1", args=(ORDER,), kwargs={})
    key = claim_request(delivery, task.policy_under(settings_of(app)), task.run_signature).key
    store.claim(request_by(key=key))
    assert json.loads(run("show", "--json", "--task", "shop.charge", "--arg", "order.id=17").stdout)["key"] == key


def test_release_and_forget(run: Run, claimed: Callable[..., str], dynamodb: DynamoDBStore) -> None:
    """The commands that change a record take the same options."""
    key = claimed("charge", ORDER)
    call = ("--task", "shop.charge", "--arg", "order.id=17")
    released = run("release", *call, "--yes", "--force")
    assert (released.exit_code, key in released.stdout) == (0, True), released.output
    assert dynamodb.get(key).free
    assert run("forget", *call, "--yes").exit_code == 0
    with pytest.raises(RecordNotFoundError):
        dynamodb.get(key)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say which record"),
        (["--arg", "order.id=17"], "name it"),
        (["--key", "ord-17"], "name it"),
        (["shop.charge#17", "--task", "shop.charge"], "give it without --task"),
        (["--task", "shop.chrage", "--arg", "order.id=17"], "did you mean 'shop.charge'?"),
        (["--task", "charge", "--arg", "order.id=17"], "did you mean 'shop.charge'?"),
        (["--task", "mail", "--arg", "order.id=17"], "the app has no task 'mail'"),
        (["--task", "shop.plain", "--arg", "order.id=17"], "'shop.plain' is no IdempotentTask"),
        (["--task", "shop.by-id", "--arg", "order.id=17"], "the task id: give 'shop.by-id#TASK-ID'"),
        (["--task", "shop.charge"], "key='order.id' needs 'order', which is not given"),
        (["--task", "shop.charge", "--arg", f"order.card={SECRET}"], "needs 'order.id', which is not given"),
        (["--task", "shop.charge-whole", "--arg", f"order.id={SECRET}"], "needs the whole of 'order', which"),
        (["--task", "shop.charge-all", "--arg", f"order.id={SECRET}"], "needs 'order.customer', which is not given"),
        (["--task", "shop.charge-called", "--arg", f"note={SECRET}"], "needs 'order', which is not given"),
        (["--task", "shop.charge-called", "--arg", f"order.card={SECRET}"], "needs 'order.id', which is not given"),
        (["--task", "shop.charge-called", "--arg", f"order={SECRET}"], "a callable, and raised AttributeError"),
        (["--task", "shop.charge", "--arg", "order={}"], "selects nothing"),
        (["--task", "shop.refund", "--arg", f"order.id={SECRET}"], "needs 'reason', which is not given"),
        (["--task", "shop.refund-all", "--arg", f"order={SECRET}"], "needs 'amount', 'reason', which is not given"),
        (["--task", "shop.powertools", "--arg", f"reason={SECRET}"], "needs 'order', which is not given"),
        (["--task", "shop.charge", "--arg", f"ordre={SECRET}"], "unexpected keyword argument 'ordre'; it takes order"),
        (["--task", "shop.charge", "--args", f'["{SECRET}"]', "--arg", "order=1"], "multiple values for argument"),
        (["--task", "shop.charge", "--args", f'["{SECRET}"'], "--args is not JSON, at character"),
        (["--task", "shop.charge", "--kwargs", f'{{"__type__": "{SECRET}", "__value__": 1}}'], "--kwargs is not JSON"),
        (["--task", "shop.charge", "--args", f'"{SECRET}"'], "--args is JSON, but no list"),
        (["--task", "shop.charge", "--kwargs", "[]"], "--kwargs is JSON, but no object"),
        (["--task", "shop.charge", "--arg", SECRET], "NAME=VALUE"),
        (["--task", "shop.charge", "--arg", f"order..id={SECRET}"], "NAME=VALUE"),
        (["--task", "shop.charge", "--arg", f"order={SECRET}", "--arg", "order.id=1"], "both order and a part of it"),
        (["--task", "shop.charge", "--arg", "order.id=1", "--arg", f"order={SECRET}"], "order twice, or a part of it"),
        (["--task", "shop.charge", "--kwargs", '{"order": 1}', "--arg", f"order={SECRET}"], "by --kwargs and by --arg"),
        (["--task", "shop.charge", "--key", ""], "idempotency_key is empty"),
        (["--task", "shop.charge", "--key", SECRET * 20], "idempotency_key has 380 characters"),
        (["--scan", "shop.charge#17"], "--scan is for a task id"),
    ],
)
def test_what_names_no_record(run: Run, wire: Wire, words: list[str], said: str) -> None:
    """It ends with 2, says what is missing or wrong, and asks nothing; no error shows a value."""
    wire.clear()
    result = run("show", *words)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    assert wire.operations() == []


def test_what_is_not_there(run: Run) -> None:
    """The key is shown, to be compared with a log; a number that may be meant as a text is mentioned."""
    texts, numbers = (run("show", "--task", "shop.charge", "--arg", f"order.id={each}") for each in ("ord-17", "17"))
    assert (texts.exit_code, numbers.exit_code) == (1, 1)
    assert "no record: 'shop.charge#" in texts.stderr
    assert "a text of digits is written" not in texts.stderr
    assert "a text of digits is written" in numbers.stderr


def test_one_of_ten_thousand(roto: str, session: boto3.Session, table: str) -> None:
    """Whatever the size of the table, showing the record of a call is one request."""
    with wire_to(roto) as wire:
        store = DynamoDBStore(table, endpoint_url=wire.endpoint, session=session)
        store.create_table()
        app = Celery("shop", broker="amqp://localhost", set_as_current=False)
        app.conf.idempotency_store = store
        task = app.task(
            charge, name="shop.charge", base=IdempotentTask, shared=False, idempotency=Idempotency(key="order.id")
        )
        delivery = Delivery(task=task.name, task_id="id-17", args=(ORDER,), kwargs={})
        store.claim(claim_request(delivery, task.policy_under(settings_of(app)), task.run_signature))
        raw = session.client("dynamodb", endpoint_url=roto)
        others = [{"id": {"S": f"shop.charge#{number}"}, "status": {"S": "COMPLETED"}} for number in range(9_999)]
        for start in range(0, len(others), 25):
            batch = [{"PutRequest": {"Item": item}} for item in others[start : start + 25]]
            assert raw.batch_write_item(RequestItems={table: batch})["UnprocessedItems"] == {}
        wire.clear()
        words = ["show", "--json", "--task", "shop.charge", "--arg", "order.id=17"]
        result = CliRunner().invoke(idempotency, words, obj=SimpleNamespace(app=app))
        assert json.loads(result.stdout)["task_id"] == "id-17"
        assert wire.operations() == ["GetItem"]
