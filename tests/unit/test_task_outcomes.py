"""`IdempotentTask` and its outcomes under a worker: final failures, recalled results, hooks, and refusals."""

import json
import logging
import secrets
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from celery import Celery, chain
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.worker import WorkController

from idempotent_tasks import (
    ConfigurationError,
    Idempotency,
    IdempotentTask,
    ResultUnavailableError,
    StoredFailureError,
    StoreUnavailableError,
)
from idempotent_tasks.core.delivery import read_delivery
from idempotent_tasks.core.records import Record, Status
from idempotent_tasks.events import Dispatched, Event, Replayed
from idempotent_tasks.messaging.handler import SENDING_SECONDS, handle
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.shop import Shop, raising
from tests.support.stores import FaultyStore, MemoryBucket, down
from tests.unit.test_continuation import Follower

#: More than a record takes, however it is compressed.
LARGE = secrets.token_hex(500_000)


class Declined(Exception):  # noqa: N818 - named as users name theirs
    """A final failure."""


FINAL: dict[str, Any] = {"store_failures": [Declined]}


def declining(task: Any) -> None:
    """Fail for good."""
    raise Declined("no", 51)


class TestFailures:
    """``store_failures``."""

    def test_a_redelivery_fails_alike(self, shop: Shop) -> None:
        """State and error in the result backend are those of the first run; the body runs once."""
        shop.sells(declining, idempotency=FINAL)
        for _ in range(2):
            shop.deliver()
            assert shop.state == "FAILURE"
            assert (type(shop.result), shop.result.args) == (Declined, ("no", 51))
        assert (shop.runs, shop.record.status) == (1, Status.FAILED)
        assert shop.worker.waiting() == 0

    def test_error_callbacks_are_sent_once(self, shop: Shop, app: Celery) -> None:
        """A redelivery knows that they were; another task id has error callbacks of its own."""
        errback = Follower(app)
        shop.sells(declining, idempotency={**FINAL, "key": "'one'", "expires": 3600})
        for task_id in ("first", "first", "second", "second"):
            shop.publish(task_id=task_id, link_error=errback.task.s())
            shop.worker.drain()
        assert errback.received == ["first", "second"]
        assert shop.runs == 1
        assert [event.task_id for event in shop.seen if isinstance(event, Dispatched)] == ["first", "second"]

    def test_they_are_sent_again_while_nobody_knows(self, shop: Shop, app: Celery, clock: FakeClock) -> None:
        """A crash between sending and its note: twice, under one id that the receiver recognises."""
        shop.sells(declining, idempotency=FINAL)
        app.conf.idempotency_store = FaultyStore(shop.store, note_dispatch=repeat(down()))
        errback = Follower(app)
        for _ in range(2):
            shop.publish(link_error=errback.task.s())
            shop.worker.drain()
            clock.advance(SENDING_SECONDS)
        assert errback.received == [shop.id] * 2
        assert len(set(errback.ids)) == 1

    def test_what_is_chained_fails_with_it(self, shop: Shop, app: Celery) -> None:
        """Links are not sent, and the rest of the chain has the failure, on replay too."""
        shop.sells(declining, idempotency=FINAL)
        follower = Follower(app)
        followers_id = uuid4().hex
        for _ in range(2):
            chain(shop.task.s().set(task_id=shop.id), follower.task.s().set(task_id=followers_id)).apply_async()
            shop.worker.drain()
            assert shop.worker.state(followers_id) == "FAILURE"
        assert (follower.received, shop.runs) == ([], 1)

    def test_autoretry_comes_first(self, shop: Shop) -> None:
        """Only the attempt after the last retry is final."""
        shop.sells(
            declining,
            autoretry_for=(Declined,),
            retry_kwargs={"max_retries": 2, "countdown": 0},
            idempotency=FINAL,
        )
        shop.publish()
        assert shop.worker.drain() == 3
        assert (shop.runs, shop.state) == (3, "FAILURE")
        shop.deliver()
        assert (shop.runs, type(shop.result)) == (3, Declined)
        assert shop.worker.waiting() == 0

    def test_a_retry_of_the_bodys_own_comes_first(self, shop: Shop) -> None:
        """``self.retry(exc=...)`` ends in its exception, which is then final."""

        def body(task: Any) -> None:
            raise task.retry(exc=Declined(task.request.retries), countdown=0, max_retries=1)

        shop.sells(body, idempotency=FINAL)
        shop.publish()
        assert shop.worker.drain() == 2
        shop.deliver()
        assert (shop.runs, shop.result.args) == (2, (1,))

    def test_expected_errors_are_logged_as_such(self, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
        """``throws`` decides how Celery logs a failure, replayed or not."""
        shop.sells(declining, throws=(Declined,), idempotency=FINAL)
        with caplog.at_level(logging.INFO, logger="celery.app.trace"):
            shop.deliver()
            shop.deliver()
        raised = [record for record in caplog.records if "raised" in record.getMessage()]
        assert [record.levelno for record in raised] == [logging.INFO] * 2

    def test_other_errors_free_the_key(self, shop: Shop) -> None:
        """A redelivery runs the body again."""
        shop.sells(raising(ConnectionError()), idempotency=FINAL)
        shop.deliver()
        shop.deliver()
        assert shop.runs == 2

    def test_a_failure_of_an_eager_call(self, shop: Shop) -> None:
        """``apply()`` raises it again too."""
        shop.sells(declining, idempotency=FINAL)
        results = [shop.task.apply(task_id=shop.id) for _ in range(2)]
        assert [(each.state, each.result.args) for each in results] == [("FAILURE", ("no", 51))] * 2
        assert shop.runs == 1

    def test_types_by_name(self, shop: Shop, app: Celery) -> None:
        """A setting that has no Python in it names them."""
        app.conf.idempotency_store_failures = [f"{__name__}:Declined"]
        shop.sells(declining)
        shop.deliver()
        shop.deliver()
        assert shop.runs == 1

    def test_a_type_that_is_not_declared_any_more(self, shop: Shop) -> None:
        """The redelivery fails by the original's name."""
        shop.sells(declining, idempotency=FINAL)
        shop.deliver()
        shop.task.idempotency_policy = Idempotency()
        shop.task._resolved = None
        shop.deliver()
        assert isinstance(shop.result, StoredFailureError)
        assert shop.result.original == f"{__name__}.Declined"
        assert shop.runs == 1


@pytest.mark.parametrize(
    "kind",
    [
        *(Retry, Ignore, SoftTimeLimitExceeded, StoreUnavailableError),
        *(TimeLimitExceeded, WorkerLostError, Terminated, MemoryError),
    ],
)
def test_what_is_never_final_cannot_be_declared(shop: Shop, kind: type[Exception]) -> None:
    """A worker with such a task does not start; as one of many, under a common parent, it is left out."""
    shop.sells(raising(kind()), idempotency={"store_failures": kind})
    with pytest.raises(SystemExit, match=f"{kind.__name__}.* never final"):
        WorkController(app=shop.app, pool="solo", concurrency=1)


class LostCard(WorkerLostError):  # noqa: N818 - named as users name theirs
    """A user's own kind of what a worker acts on."""


class Odd(ValueError, Reject):  # noqa: N818
    """A user's own error that is a signal to Celery, too."""


@pytest.mark.parametrize(
    "forged",
    [
        *("celery.exceptions.Reject", "celery.exceptions.Ignore", "celery.exceptions.Retry"),
        *("celery.exceptions.TaskPredicate", "billiard.exceptions.SoftTimeLimitExceeded"),
        *("billiard.exceptions.TimeLimitExceeded", "billiard.exceptions.WorkerLostError"),
        *("billiard.exceptions.Terminated", "builtins.MemoryError"),
        *("idempotent_tasks.errors.StoreUnavailableError", "idempotent_tasks.errors.ConfigurationError"),
        *("celery.exceptions.WorkerShutdown", "celery.exceptions.WorkerTerminate"),
        *("builtins.SystemExit", "builtins.KeyboardInterrupt", "builtins.GeneratorExit", "builtins.BaseException"),
        *("builtins.exec", "os.system", "subprocess.Popen", "idempotent_tasks.core.encoding.decode_failure"),
        *(f"{__name__}.LostCard", f"{__name__}.Odd"),
    ],
)
def test_a_record_gives_no_orders(shop: Shop, forged: str) -> None:
    """What tells a worker what to do with a message or with itself is made for no record, even if all is final."""
    shop.sells(declining, idempotency={"store_failures": Exception})
    shop.deliver()
    data = json.dumps({"type": forged, "args": ["x", True], "state": {"reason": "x", "requeue": True}})
    shop.store._records[shop.key] = replace(shop.record, data=data)
    shop.deliver()
    assert (shop.runs, shop.worker.waiting(), shop.state) == (1, 0, "FAILURE")
    assert isinstance(shop.result, StoredFailureError)
    assert "store_failures" in str(shop.result)


@pytest.mark.parametrize(
    "kind", [Ignore, SoftTimeLimitExceeded, StoreUnavailableError, TimeLimitExceeded, Terminated, LostCard]
)
def test_what_is_never_final_frees_the_key(shop: Shop, kind: type[Exception]) -> None:
    """Even where every exception is declared final."""
    shop.sells(raising(kind()), idempotency={"store_failures": Exception})
    shop.deliver()
    shop.deliver()
    assert (shop.runs, shop.record.status) == (2, Status.INPROGRESS)


class TestRecall:
    """Results that only the result backend has."""

    def deliver_other(self, shop: Shop) -> Any:
        """Deliver another message with the key, and return its result."""
        # Unique, because the result backend's memory is the whole process's.
        other = uuid4().hex
        shop.publish(task_id=other)
        shop.worker.drain()
        return shop.worker.result(other)

    @pytest.fixture(autouse=True)
    def sold(self, shop: Shop) -> None:
        """The task returns more than a record takes."""
        shop.sells(lambda task: LARGE, idempotency={"key": "'one'", "expires": 3600})

    @pytest.mark.parametrize("extended", [False, True])
    def test_the_backend_has_it(self, shop: Shop, app: Celery, extended: bool) -> None:
        """A duplicate and a redelivery get the result, whether or not the backend says whose it is."""
        app.conf.result_extended = extended
        shop.deliver()
        assert self.deliver_other(shop) == LARGE
        shop.deliver()
        assert (shop.state, shop.runs) == ("SUCCESS", 1)

    def test_the_backend_has_forgotten_it(self, shop: Shop) -> None:
        """The duplicate fails, and says why."""
        shop.deliver()
        shop.app.AsyncResult(shop.id).forget()
        error = self.deliver_other(shop)
        assert isinstance(error, ResultUnavailableError)
        assert "the store takes" in str(error)
        assert shop.runs == 1

    def test_the_backend_never_had_it(self, shop: Shop) -> None:
        """``ignore_result`` keeps a result from the backend."""
        shop.deliver(ignore_result=True)
        assert isinstance(self.deliver_other(shop), ResultUnavailableError)

    def test_the_backend_has_anothers(self, shop: Shop, app: Celery) -> None:
        """An id that two tasks share is told apart where the backend says whose result it has."""
        app.conf.result_extended = True
        shop.deliver(ignore_result=True)
        other = Follower(app)
        other.task.apply_async(("not mine",), task_id=shop.id)
        shop.worker.drain()
        assert isinstance(self.deliver_other(shop), ResultUnavailableError)

    def test_a_failure_there_is_no_result(self, shop: Shop, app: Celery) -> None:
        """A state other than SUCCESS has no result."""
        shop.deliver(ignore_result=True)
        app.backend.store_result(shop.id, ValueError("x"), "FAILURE")
        assert isinstance(self.deliver_other(shop), ResultUnavailableError)

    def test_a_backend_that_does_not_answer(self, shop: Shop, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        """The duplicate is deferred until it does; the body does not run."""
        shop.deliver()

        def away(*_: Any, **__: Any) -> None:
            raise ConnectionError("no backend")

        monkeypatch.setattr(shop.task.backend, "get_task_meta", away)
        other = uuid4().hex
        shop.publish(task_id=other)
        shop.worker.run_next()
        assert (shop.deferrals(), shop.worker.waiting()) == (["StoreUnavailableError"], 1)
        monkeypatch.undo()
        monkeypatch.setattr("celery._state._tls.current_app", app)
        shop.worker.drain()
        assert shop.worker.result(other) == LARGE
        assert shop.runs == 1

    @pytest.mark.parametrize("backend", ["disabled://", "rpc://"])
    def test_a_backend_that_keeps_nothing(self, shop: Shop, app: Celery, backend: str) -> None:
        """It is not asked."""
        app.conf.result_backend = backend
        app._local.__dict__.pop("backend", None)
        app._backend_cache = None
        shop.task.backend = None
        shop.deliver()
        with pytest.raises(ResultUnavailableError):
            deliver_again(shop)


def deliver_again(shop: Shop) -> Any:
    """Deliver the shop's message again, outside a worker."""
    settings = settings_of(shop.app)
    delivery = read_delivery(shop.task.name, _request(shop), (), {})
    return handle(shop.task, delivery, shop.task.policy_under(settings), settings, lambda run: "ran")


def _request(shop: Shop) -> Any:
    context = shop.task.request_stack.top or shop.task.request
    context.update(id="other", hostname="here", is_eager=True)
    return context


def test_nobody_is_asked_for_what_is_stored(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay from the record costs no request to the result backend."""
    shop.sells(lambda task: "small", idempotency={"key": "'one'", "expires": 3600})
    shop.deliver()
    monkeypatch.setattr(shop.task.backend, "get_task_meta", lambda *_, **__: pytest.fail("asked"))
    assert deliver_again(shop) == "small"


class TestBucket:
    """``idempotency_results_bucket``."""

    def test_a_bucket_that_is_away_defers_the_replay(self, shop: Shop, app: Celery) -> None:
        """Under ``on_store_error="run"`` too: the key has its outcome, and the body must not run."""
        bucket = MemoryBucket()
        app.conf.idempotency_results_bucket = bucket
        shop.sells(lambda task: LARGE, idempotency={"on_store_error": "run"}, ignore_result=True)
        shop.deliver()
        assert shop.record.codec == "json+zlib+s3"
        bucket._failures = iter([StoreUnavailableError("away")] * 1000)
        shop.deliver()
        assert (shop.runs, shop.deferrals(), shop.worker.waiting()) == (1, ["StoreUnavailableError"], 1)
        bucket._failures = iter(())
        shop.worker.drain()
        assert (shop.runs, sum(isinstance(each, Replayed) for each in shop.seen)) == (1, 1)

    def test_or_fails_it(self, shop: Shop, app: Celery) -> None:
        """``on_store_error="raise"``."""
        app.conf.idempotency_results_bucket = bucket = MemoryBucket()
        shop.sells(lambda task: LARGE, idempotency={"on_store_error": "raise"})
        # The backend keeps a success against what comes after it.
        shop.deliver(ignore_result=True)
        bucket._failures = iter([StoreUnavailableError("away")] * 1000)
        shop.deliver()
        assert isinstance(shop.result, StoreUnavailableError)
        assert shop.runs == 1


def hook(result: Any, record: Record) -> Any:
    """Be found by a name."""
    return [result, record.task_id]


class TestNames:
    """What a policy names as ``module:name``."""

    def test_a_hook_by_name(self, shop: Shop) -> None:
        """It is imported when the task first runs."""
        shop.sells(lambda task: "paid", idempotency={"on_replay": f"{__name__}:hook"})
        shop.deliver()
        assert shop.task.apply(task_id=shop.id).result == ["paid", shop.id]

    @pytest.mark.parametrize(
        "policy",
        [
            {"on_replay": "nowhere:hook"},
            {"on_replay": f"{__name__}:LARGE"},
            {"store_failures": [f"{__name__}:nothing"]},
            {"store_failures": f"{__name__}:hook"},
            {"store_failures": "no name at all"},
        ],
        ids=repr,
    )
    def test_a_worker_with_a_wrong_name_does_not_start(self, shop: Shop, policy: dict[str, Any]) -> None:
        """It says which; a call in this process says it before the body runs."""
        shop.sells(lambda task: "paid", idempotency=policy)
        (field,) = policy
        with pytest.raises(SystemExit, match=f"{field}="):
            WorkController(app=shop.app, pool="solo", concurrency=1)
        with pytest.raises(ConfigurationError, match=f"{field}="):
            shop.task.apply(throw=True)
        assert shop.runs == 0


class TestPickle:
    """``codec="pickle"``."""

    def test_an_app_without_pickle_does_not_start(self, shop: Shop) -> None:
        """The worker says what could happen, and what to do."""
        shop.sells(lambda task: {1, 2}, idempotency={"codec": "pickle"})
        with pytest.raises(SystemExit, match=r"codec='pickle'.*result_accept_content"):
            WorkController(app=shop.app, pool="solo", concurrency=1)
        with pytest.raises(ConfigurationError, match="could run code here"):
            shop.task.apply(throw=True)
        assert shop.runs == 0

    @pytest.mark.parametrize("setting", ["accept_content", "result_accept_content"])
    @pytest.mark.parametrize("name", ["pickle", "application/x-python-serialize"])
    def test_an_app_with_pickle_starts_loudly(
        self, shop: Shop, caplog: pytest.LogCaptureFixture, setting: str, name: str
    ) -> None:
        """A finding is logged, results keep their types, and no body runs twice."""
        shop.app.conf[setting] = ["json", name]
        shop.sells(lambda task: {1, 2}, idempotency={"codec": "pickle"})
        WorkController(app=shop.app, pool="solo", concurrency=1)
        found = [vars(each).get("idempotency_finding") for each in caplog.records if each.levelno == logging.WARNING]
        assert "pickled-results" in found
        assert [shop.task.apply(task_id=shop.id).result for _ in range(2)] == [{1, 2}] * 2
        assert (shop.runs, shop.record.codec) == (1, "pickle")


class TestTheAppsSerializer:
    """Results are stored as the app itself writes results and messages, unless a policy says otherwise."""

    PICKLED: Final[dict[str, Any]] = {"accept_content": ["json", "pickle"]}

    @pytest.mark.parametrize(
        ("conf", "codec"),
        [
            ({}, "json"),
            ({**PICKLED, "result_serializer": "pickle"}, "pickle"),
            ({**PICKLED, "task_serializer": "pickle"}, "pickle"),
            ({"result_accept_content": ["pickle"], "result_serializer": "pickle"}, "pickle"),
            ({**PICKLED, "result_serializer": "json"}, "json"),
            ({"result_serializer": "pickle"}, "json"),
            ({"accept_content": ["json", "yaml"], "result_serializer": "yaml"}, "yaml"),
            ({"accept_content": ["json", "msgpack", "pickle"], "result_serializer": "msgpack"}, "msgpack"),
            ({**PICKLED, "result_serializer": "pickle", "idempotency_codec": "json"}, "json"),
        ],
        ids=str,
    )
    def test_which_it_is(self, shop: Shop, conf: dict[str, Any], codec: str) -> None:
        """What is not accepted is not written: nobody could read it."""
        shop.app.conf.update(conf)
        shop.sells(lambda task: "paid")
        assert shop.task.policy_under(settings_of(shop.app)).codec == codec

    @pytest.mark.parametrize(("serializer", "codec"), [("pickle", "pickle"), ("yaml", "json"), ("json", "json")])
    def test_a_tasks_own_serializer(self, shop: Shop, serializer: str, codec: str) -> None:
        """Its steps write what it returns with theirs, as a rule the same."""
        shop.app.conf.update(**self.PICKLED)
        shop.sells(lambda task: {17: 1999}, serializer=serializer)
        assert shop.task.policy_under(settings_of(shop.app)).codec == codec

    def test_a_policys_own_codec_stays(self, shop: Shop) -> None:
        """Whatever the app writes."""
        shop.app.conf.update(**self.PICKLED, result_serializer="pickle")
        shop.sells(lambda task: {17: 1999}, idempotency={"codec": "json"})
        assert [shop.task.apply(task_id=shop.id).result for _ in range(2)] == [{17: 1999}, {"17": 1999}]

    def test_a_replay_gives_the_next_step_what_the_first_run_gave(self, shop: Shop) -> None:
        """A key that is a number stays one."""
        shop.app.conf.update(**self.PICKLED, task_serializer="pickle", result_serializer="pickle")
        given: list[Any] = []

        def total(prices: Any) -> None:
            given.append(prices)

        follower = shop.app.task(total, name="shop.total", shared=False)
        shop.sells(lambda task: {17: 1999}, idempotency={"key": "'one'", "expires": 3600})
        for number in range(2):
            shop.publish(task_id=f"{shop.id}-{number}", link=follower.s())
            shop.worker.drain()
        assert (given, shop.runs) == ([{17: 1999}] * 2, 1)

    def test_a_replay_gives_who_waits_what_the_first_run_gave(self, shop: Shop) -> None:
        """Under another serializer of kombu's, too."""
        pytest.importorskip("yaml")
        shop.app.conf.update(task_serializer="yaml", result_serializer="yaml", accept_content=["json", "yaml"])
        shop.sells(lambda task: {17: (19, 99)}, idempotency={"key": "'one'", "expires": 3600})
        for number in range(2):
            shop.deliver(task_id=f"{shop.id}-{number}")
        results = [shop.worker.result(f"{shop.id}-{number}") for number in range(2)]
        assert (results, shop.runs) == ([{17: [19, 99]}] * 2, 1)

    def test_a_codec_that_the_app_does_not_accept(self, shop: Shop) -> None:
        """It is said before a body runs."""
        shop.sells(lambda task: "paid", idempotency={"codec": "yaml"})
        with pytest.raises(ConfigurationError, match=r"codec='yaml' is what the app does not accept"):
            shop.task.apply(throw=True)

    def test_a_worker_says_that_it_reads_pickle(self, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
        """Once for all its tasks."""
        shop.app.conf.update(**self.PICKLED, result_serializer="pickle")
        shop.sells(lambda task: "paid")
        shop.app.task(do_nothing, name="shop.other", base=IdempotentTask, shared=False)
        WorkController(app=shop.app, pool="solo", concurrency=1)
        found = [vars(each).get("idempotency_finding") for each in caplog.records]
        assert found.count("pickled-results") == 1


def do_nothing() -> None:
    """Be a body."""


class TestIgnoredResults:
    """``ignore_result``: nobody gets a result, so one that cannot be stored is no error."""

    UNWRITABLE: Final = frozenset({"of no JSON form"})

    @pytest.mark.parametrize("per_call", [False, True])
    def test_a_result_without_a_form(self, shop: Shop, seen: list[Event], per_call: bool) -> None:
        """The run and its replays succeed, the body runs once."""
        shop.sells(lambda task: self.UNWRITABLE, ignore_result=not per_call)
        for _ in range(2):
            shop.deliver(ignore_result=True)
        assert (shop.runs, shop.record.codec) == (1, "none")
        assert [type(event).__name__ for event in seen] == ["Claimed", "Committed", "Replayed"]

    def test_a_call_that_wants_it(self, shop: Shop) -> None:
        """Is told that there is none."""
        shop.sells(lambda task: self.UNWRITABLE, idempotency={"key": "'one'", "expires": 3600})
        shop.deliver(task_id=f"{shop.id}-ignoring", ignore_result=True)
        shop.deliver(ignore_result=False)
        assert isinstance(shop.result, ResultUnavailableError)
        assert shop.runs == 1

    def test_what_follows_wants_it(self, shop: Shop) -> None:
        """A link is given the result, whatever the backend is."""
        shop.sells(lambda task: self.UNWRITABLE, ignore_result=True)
        follower = shop.app.task(do_nothing, name="shop.follower", shared=False)
        shop.deliver(link=follower.si())
        assert [type(event).__name__ for event in shop.seen][-1] == "Unreplayable"


def test_the_documents_name_every_codec() -> None:
    """`docs/reference/results.md` says what each name in the attribute ``codec`` means."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "results.md").read_text()
    for name in ("json", "pickle", "failure", "none", "omitted", "+zlib", "+s3"):
        assert f"| `{name}` |" in text


def test_a_guarded_task_of_another_class_has_its_policy(app: Celery, store: MemoryStore) -> None:
    """``store_failures`` of a base class are those of its tasks."""

    class Base(IdempotentTask):
        idempotency_policy = Idempotency(store_failures=Declined)

    task: Any = app.task(declining, base=Base, bind=True, name="shop.base", shared=False)
    for _ in range(2):
        task.apply(task_id="one")
    assert [record.status for record in store.records()] == [Status.FAILED]
