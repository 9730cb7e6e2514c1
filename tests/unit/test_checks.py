"""What the checks find in an app's configuration: each kind provoked, and gone once its remedy was applied."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task
from celery.worker import WorkController
from kombu import Queue
from kombu.common import Broadcast

from idempotent_tasks import ConfigurationError, Idempotency, IdempotentTask
from idempotent_tasks.checks import WHY, CheckContext, Finding, run_checks
from idempotent_tasks.checks.dynamodb import TABLE_FINDINGS
from idempotent_tasks.checks.findings import PER_TASK
from idempotent_tasks.checks.receipts import RECEIPT_FINDINGS
from idempotent_tasks.checks.s3 import BUCKET_FINDINGS
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import MemoryStore
from tests.support.logs import logged

REDIS = "redis://localhost:1"
QUORUM = {"x-queue-type": "quorum"}


#: Options of an SQS at whose address nobody listens, and of a client that finds out at once.
NO_SQS: dict[str, Any] = {
    "region": "eu-west-1",
    "is_secure": False,
    "client-config": {"connect_timeout": 1, "retries": {"total_max_attempts": 1}},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A configuration that a check objects to, and the one that its remedy makes of it."""

    #: What is wrong: options of the task, settings, and what the worker was started with.
    task: dict[str, Any] = field(default_factory=dict)
    conf: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    #: Options of a second task, where there is one.
    other: dict[str, Any] = field(default_factory=dict)
    #: Settings under which the app was used before, if it was.
    used: dict[str, Any] = field(default_factory=dict)
    #: The same after the remedy; what is not named stays.
    fixed_task: dict[str, Any] = field(default_factory=dict)
    fixed_conf: dict[str, Any] = field(default_factory=dict)
    fixed_worker: dict[str, Any] = field(default_factory=dict)
    fixed_other: dict[str, Any] = field(default_factory=dict)
    #: What the remedy says, in part.
    remedy: str


def do_nothing(order: Any = None, amount: int = 5, invoice: Any = None) -> None:
    """Be a body."""


def by_order(order: Any, **_: Any) -> Any:
    """Return a key."""
    return order


def by_invoice(invoice: Any, **_: Any) -> Any:
    """Return another key."""
    return invoice


def visibility(seconds: int, **more: Any) -> dict[str, Any]:
    """Return the settings of a Redis broker."""
    return {"broker_url": REDIS, "broker_transport_options": {"visibility_timeout": seconds}, **more}


def queue_with(limit: int) -> dict[str, Any]:
    """Return the settings of a quorum queue."""
    return {"task_queues": [Queue("quorum", queue_arguments={**QUORUM, "x-delivery-limit": limit})]}


CASES = {
    "check-failed": Case(
        conf={"worker_eta_task_limit": "many"}, fixed_conf={"worker_eta_task_limit": 1000}, remedy="fix the setting"
    ),
    "acks-late-off": Case(task={"acks_late": False}, fixed_task={"acks_late": True}, remedy="drop acks_late=False"),
    "reject-on-worker-lost-off": Case(
        task={"reject_on_worker_lost": False},
        fixed_task={"reject_on_worker_lost": True},
        remedy="drop reject_on_worker_lost=False",
    ),
    "request-class-replaced": Case(
        task={"Request": "celery.worker.request:Request"},
        fixed_task={"Request": "idempotent_tasks.request:GuardedRequest"},
        remedy="GuardedRequest",
    ),
    "transport-never-redelivers": Case(
        conf={"broker_url": "filesystem://"}, fixed_conf={"broker_url": REDIS}, remedy="app.conf.broker_url"
    ),
    "task-not-guarded": Case(
        other={"base": Task, "idempotency": {"key": "order"}},
        fixed_other={"base": IdempotentTask},
        remedy="@app.task(base=IdempotentTask, idempotency=...)",
    ),
    "option-misplaced": Case(
        task={"idempotncy": {"key": "order"}},
        fixed_task={"idempotncy": None, "idempotency": {"key": "order"}},
        remedy="idempotency=Idempotency(...) there",
    ),
    "skip-without-key": Case(
        conf={"idempotency_on_busy": "skip"},
        fixed_task={"idempotency": Idempotency.exclusive()},
        remedy="idempotency=Idempotency.exclusive() there for one run at a time, or key=",
    ),
    "key-names-no-parameter": Case(
        conf={"idempotency_key": "order_id"},
        fixed_task={"idempotency": {"key": "order"}},
        remedy="idempotency=Idempotency(key=..., validate=...) of its own for 'shop.charge'",
    ),
    "retries-parked": Case(
        task={"autoretry_for": (ConnectionError,), "idempotency": {"on_rerun": "park"}},
        fixed_task={"autoretry_for": ()},
        remedy="self.idempotency.nothing_done()",
    ),
    "time-limit-missing": Case(
        conf={"task_time_limit": None}, fixed_task={"time_limit": 300}, remedy="time_limit=300 there"
    ),
    "visibility-far-above-time-limit": Case(
        task={"time_limit": 30},
        conf=visibility(3600),
        fixed_conf=visibility(390),
        remedy='{"visibility_timeout": 390}',
    ),
    "visibility-below-time-limit": Case(
        task={"time_limit": 600},
        conf=visibility(300, worker_prefetch_multiplier=1),
        fixed_task={"time_limit": 300},
        fixed_conf=visibility(660),
        remedy='{"visibility_timeout": 660}',
    ),
    "prefetch-outlives-visibility": Case(
        task={"time_limit": 1000},
        conf=visibility(3600, worker_prefetch_multiplier=4),
        fixed_conf={"worker_prefetch_multiplier": 1},
        remedy="app.conf.worker_prefetch_multiplier = 1",
    ),
    "prefetch-unlimited": Case(
        conf={"worker_prefetch_multiplier": 0},
        fixed_conf={"worker_prefetch_multiplier": 1},
        remedy="app.conf.worker_prefetch_multiplier = 1",
    ),
    "eta-task-limit-low": Case(
        conf={"worker_eta_task_limit": 8, "worker_concurrency": 2, "worker_prefetch_multiplier": 4},
        fixed_conf={"worker_eta_task_limit": 1000},
        remedy="app.conf.worker_eta_task_limit = 1000",
    ),
    "time-limit-ignored": Case(
        task={"time_limit": 60},
        worker={"pool": "celery.concurrency.thread"},
        fixed_worker={"pool": "celery.concurrency.prefork"},
        remedy="--pool prefork",
    ),
    "expires-before-redelivery": Case(
        task={"idempotency": Idempotency(expires=60)},
        conf=visibility(300),
        fixed_task={"idempotency": Idempotency(expires=300)},
        remedy="expires=300",
    ),
    "result-expires-first": Case(
        conf={"result_expires": 60}, fixed_conf={"result_expires": 3600}, remedy="app.conf.result_expires = 3600"
    ),
    "delivery-limit-below-max-crashes": Case(
        conf=queue_with(5), fixed_conf=queue_with(10), remedy='"x-delivery-limit": 10'
    ),
    "pickled-results": Case(
        task={"idempotency": Idempotency(codec="pickle")},
        conf={"result_accept_content": ["json", "pickle"]},
        fixed_task={"idempotency": Idempotency(codec="json")},
        remedy="drop codec='pickle' from 'shop.charge'",
    ),
    "settings-changed": Case(
        used={"idempotency_grace": 5},
        conf={"idempotency_grace": 9},
        fixed_conf={"idempotency_grace": 5},
        remedy="where the app is made",
    ),
    "downstream-shared": Case(
        task={"idempotency": {"downstream": "order.id"}},
        other={"idempotency": {"downstream": "invoice"}},
        fixed_task={"idempotency": {"downstream": "['charge', order.id]"}},
        fixed_other={"idempotency": {"downstream": "['refund', order.id]"}},
        remedy="begin each with a literal of its own",
    ),
    "prefix-shared": Case(
        task={"idempotency": Idempotency(key="order", prefix="shop")},
        other={"idempotency": Idempotency(key="order", validate="amount", prefix="shop")},
        fixed_task={"idempotency": Idempotency(key="order", validate="amount", prefix="shop")},
        remedy="or both the same validate",
    ),
    "broadcast-not-deferred": Case(
        conf={"broker_url": REDIS, "task_queues": [Broadcast("news", queue="news", unique=False)]},
        fixed_conf={"task_queues": [Queue("news")]},
        remedy="to another queue than 'news'",
    ),
    "queue-limits-unknown": Case(
        conf={
            "broker_url": "sqs://x:y@127.0.0.1:1",
            "broker_transport_options": {**NO_SQS, "predefined_queues": {"pay": {"url": "http://127.0.0.1:1/pay"}}},
        },
        fixed_conf={"broker_transport_options": NO_SQS},
        remedy="allow sqs:GetQueueAttributes",
    ),
    "celery-unsupported": Case(
        worker={"celery_version": "5.3.6"}, fixed_worker={"celery_version": "5.4.0rc1"}, remedy="celery>=5.4"
    ),
}

Look = Callable[..., list[Finding]]


@pytest.fixture
def look(app: Celery) -> Look:
    """Look at the app with one guarded task, or two, and a configuration; its broker redelivers by default."""

    def look(
        task: dict[str, Any], conf: dict[str, Any], worker: dict[str, Any], other: dict[str, Any] | None = None
    ) -> list[Finding]:
        usual = {"broker_url": "amqp://localhost", "task_time_limit": 60}
        app.conf.update({**usual, "broker_transport_options": {"visibility_timeout": 900}, **conf})
        app.__dict__.pop("amqp", None)
        for name, options in {"shop.charge": task, **({"shop.other": other} if other else {})}.items():
            app.tasks.pop(name, None)
            app.task(do_nothing, **{"name": name, "base": IdempotentTask, "shared": False, **options})
        context = CheckContext.of_app(app, "celery.concurrency.prefork")
        return run_checks(replace(context, **worker))

    return look


@pytest.mark.parametrize(("code", "case"), CASES.items(), ids=CASES)
def test_what_is_wrong_is_found_and_its_remedy_fixes_it(app: Celery, look: Look, code: str, case: Case) -> None:
    """The finding names the task or setting and what to paste; nothing is left to find when that was done."""
    if case.used:
        app.conf.update(case.used)
        settings_of(app)
    (finding,) = look(case.task, case.conf, case.worker, case.other)
    assert finding.code == code
    assert case.remedy in finding.remedy
    assert finding.why == WHY[code]
    assert not look(
        {**case.task, **case.fixed_task},
        {**case.conf, **case.fixed_conf},
        {**case.worker, **case.fixed_worker},
        {**case.other, **case.fixed_other},
    )


def test_every_kind_of_finding_is_provoked() -> None:
    """What the table and the bucket are asked is provoked at real ones, by the contract tests."""
    asked = {*TABLE_FINDINGS, *BUCKET_FINDINGS, *RECEIPT_FINDINGS}
    assert set(CASES) | asked == set(WHY)
    assert not set(CASES) & asked


def test_another_store_is_found_after_the_first_was_used(
    app: Celery, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    """It is taken, and logged when it is first used; a worker that starts then says so too."""
    settings_of(app)
    (finding,) = look({}, {"idempotency_store": MemoryStore()}, {})
    assert finding.code == "settings-changed"
    assert finding.what.startswith("idempotency_store was <idempotent_tasks.stores.memory.MemoryStore")
    assert "what <idempotent_tasks.stores.memory.MemoryStore" in caplog.text


@pytest.mark.parametrize(
    ("policies", "found"),
    [
        ([{"prefix": "shop.charge", "key": "order"}, {}], 1),
        ([{"prefix": "shop", "key": "order"}, {"prefix": "shop", "key": "order"}], 0),
        ([{"prefix": "shop", "key": by_order}, {"prefix": "shop", "key": by_invoice}], 1),
        ([{"prefix": "shop", "key": by_order}, {"prefix": "shop", "key": by_order, "expires": 60}], 0),
        ([{"prefix": "one", "key": "order"}, {"prefix": "two", "key": "invoice"}], 0),
        ([{"key": "order"}, {"key": "invoice"}], 0),
    ],
)
def test_which_prefixes_may_be_shared(look: Look, policies: list[dict[str, Any]], found: int) -> None:
    """Where key and payload mean the same; a task's name is its prefix where it gives none."""
    other, task = policies
    codes = [each.code for each in look({"idempotency": task}, {"result_expires": None}, {}, {"idempotency": other})]
    assert codes == ["prefix-shared"] * found


@pytest.mark.parametrize(
    ("policies", "found"),
    [
        ([{"downstream": "order"}, {"downstream": "order"}], 1),
        ([{"downstream": "['charge', order]"}, {"downstream": "['charge',invoice.id]"}], 1),
        ([{"downstream": "['charge', order]"}, {"downstream": "['refund', order]"}], 0),
        ([{"downstream": "{charge: order}"}, {"downstream": "{refund: order}"}], 0),
        ([{"downstream": by_order}, {"downstream": by_order}], 1),
        ([{"downstream": by_order}, {"downstream": by_invoice}], 0),
        ([{"downstream": by_order}, {"downstream": "order"}], 0),
        ([{"downstream": "order"}, {}], 0),
        ([{"downstream": "order", "prefix": "shop.charge"}, {"downstream": "order"}], 0),
        ([{"downstream": "order", "prefix": "shop"}, {"downstream": "order", "prefix": "billing"}], 1),
    ],
)
def test_which_downstream_keys_may_be_shared(look: Look, policies: list[dict[str, Any]], found: int) -> None:
    """Those of a task under two names; of others, constants or callables of their own keep them apart."""
    other, task = policies
    codes = [each.code for each in look({"idempotency": task}, {"result_expires": None}, {}, {"idempotency": other})]
    assert codes == ["downstream-shared"] * found


class Orders:
    """Options that a task class may inherit."""

    idempotency = Idempotency(key="order")


class OfOrders(Orders, Task):
    """A base class that is not guarded."""


@pytest.mark.parametrize(
    ("options", "annotations"),
    [
        ({"idempotency": {}}, {}),
        ({"idempotency_policy": {"key": "order"}}, {}),
        ({"base": OfOrders}, {}),
        ({}, {"idempotency": Idempotency(key="order")}),
        ({}, {"idempotency": {"key": "order"}}),
    ],
    ids=["mapping", "policy", "inherited", "annotated", "annotated-mapping"],
)
def test_options_that_guard_nothing_are_found(
    app: Celery, look: Look, options: dict[str, Any], annotations: dict[str, Any]
) -> None:
    """Where no class could refuse them; a task without any is left alone, and so are Celery's own."""
    app.conf.task_annotations = {"shop.other": annotations, "celery.*": annotations}
    app.task(do_nothing, name="shop.plain", shared=False)
    (finding,) = look({}, {}, {}, {"base": Task, **options})
    assert (finding.code, finding.tasks) == ("task-not-guarded", ("shop.other",))


@pytest.mark.parametrize("policy", [Idempotency.exclusive(), Idempotency.exclusive(key="order"), {"expires": 0}])
def test_an_exclusive_task_is_not_argued_with(look: Look, policy: Any) -> None:
    """Its outcome is kept for a day for its own message, and is replayed to nobody else."""
    assert look({"idempotency": policy}, visibility(3600, result_expires=60, task_time_limit=600), {}) == []
    (finding,) = look({"idempotency": policy}, visibility(100_000, task_time_limit=10_000), {})
    assert finding.what == "task 'shop.charge': records expire after 86400 s, redeliveries come after 100000 s"


def test_a_run_without_an_outcome_is_known_of_for_long_enough(look: Look) -> None:
    """A redelivery that comes after ``unresolved_for`` would take itself for the first run."""
    policy = {"expires": 86_400, "unresolved_for": 600}
    conf = visibility(3600, task_time_limit=600)
    (finding,) = look({"idempotency": policy}, conf, {})
    assert (finding.code, finding.remedy) == (
        "expires-before-redelivery",
        "Idempotency(..., unresolved_for=3600) there, or more",
    )
    assert finding.what == "task 'shop.charge': unresolved_for is 600 s, redeliveries come after 3600 s"
    assert look({"idempotency": {**policy, "unresolved_for": 3600}}, conf, {}) == []


def test_a_pool_that_ends_no_body_is_not_told_to(look: Look) -> None:
    """A soft limit, of the task or of the worker, ends a body too; a lease ends none."""
    no_limit = {"task_time_limit": None}
    assert look({"soft_time_limit": 30}, no_limit, {}) == []
    assert look({}, no_limit, {"worker_soft_time_limit": 30.0}) == []
    assert look({}, no_limit, {"pool": "celery.concurrency.solo"}) == []
    (finding,) = look({"idempotency": {"lease": 60}}, no_limit, {})
    assert (finding.code, finding.what) == ("time-limit-missing", "task 'shop.charge': no time limit")


@pytest.mark.parametrize(
    ("task", "conf", "sufficient"),
    [
        ({"time_limit": 30}, {}, 390),
        ({"time_limit": 30}, {"worker_prefetch_multiplier": 1}, 300),
        ({"time_limit": 30, "default_retry_delay": 600}, {}, 810),
        ({"time_limit": 30, "autoretry_for": (OSError,), "retry_backoff": True}, {}, 810),
        ({"time_limit": 30, "autoretry_for": (OSError,), "retry_backoff": 5, "retry_backoff_max": 7200}, {}, None),
        ({"time_limit": 90}, {}, None),
        ({"time_limit": 30}, {"worker_prefetch_multiplier": 0}, None),
        ({"time_limit": 30}, {"broker_transport_options": {"visibility_timeout": 600}}, None),
    ],
)
def test_when_a_visibility_timeout_is_far_too_long(
    look: Look, task: dict[str, Any], conf: dict[str, Any], sufficient: int | None
) -> None:
    """An hour, as Redis has it, over seconds of work; retries, which a worker holds until they are due, need theirs."""
    found = look(task, {"broker_url": REDIS, "broker_transport_options": {}, **conf}, {})
    remedies = [each.remedy for each in found if each.code == "visibility-far-above-time-limit"]
    assert [f'"visibility_timeout": {sufficient}}}' in each for each in remedies] == [True] * (sufficient is not None)


def test_a_task_without_a_limit_may_need_the_whole_visibility_timeout(look: Look) -> None:
    """Also one that is not guarded; and on a pool that enforces none, no limit counts."""
    conf: dict[str, Any] = {"broker_url": REDIS, "broker_transport_options": {}, "task_time_limit": None}
    assert look({"time_limit": 30}, conf, {}, {"base": Task}) == []
    codes = [each.code for each in look({"time_limit": 30}, conf, {"pool": "celery.concurrency.solo"})]
    assert codes == ["time-limit-ignored"]


@pytest.mark.parametrize(
    ("url", "options", "found"),
    [
        ("redis://localhost", {}, ["visibility-below-time-limit"]),
        ("sqs://", {}, ["visibility-below-time-limit"]),
        ("sqs://", {"visibility_timeout": 43_200}, []),
        ("amqp://localhost", {}, []),
        ("sqla+sqlite://", {}, ["transport-never-redelivers"]),
    ],
)
def test_each_broker_has_its_own_visibility(look: Look, url: str, options: dict[str, Any], found: list[str]) -> None:
    """An hour on Redis and half an hour on SQS unless the app says otherwise; RabbitMQ has none."""
    conf = {"broker_url": url, "broker_transport_options": options, "worker_prefetch_multiplier": 1}
    task = {"time_limit": 4000, "idempotency": {"expires": 86_400}}
    assert [each.code for each in look(task, {**conf, "result_expires": None}, {})] == found


def test_tasks_that_share_a_finding_are_reported_together(app: Celery) -> None:
    """An app of many tasks has one line for each kind of finding, not for each task."""
    app.conf.update(broker_url="amqp://localhost", result_expires=60, task_time_limit=60)
    for number in range(7):
        app.task(do_nothing, name=f"shop.task{number}", base=IdempotentTask, shared=False, acks_late=number > 0)
    early, outlived = run_checks(CheckContext.of_app(app, "celery.concurrency.prefork"))
    assert early.what == "task 'shop.task0': acks_late=False"
    names = ", ".join(f"'shop.task{number}'" for number in range(5))
    assert outlived.what == f"tasks {names} and 2 more: records live up to 3600 s, results 60 s"


def test_a_task_without_a_limit_takes_the_workers(look: Look) -> None:
    """``--time-limit`` counts where the task says nothing, and is no worse ignored than a task's own."""
    threads = {"worker_time_limit": 60.0, "pool": "celery.concurrency.thread"}
    (finding,) = look({}, {"task_time_limit": None}, threads)
    assert finding.code == "time-limit-ignored"
    assert "'shop.charge' has a time limit of 60 s, which the thread pool does not enforce" in finding.what


def test_what_is_accepted_is_not_found(look: Look) -> None:
    """A finding that its owner knows and lives with is named in a setting and not reported again."""
    silenced = {"idempotency_silenced_checks": ["result-expires-first"], "result_expires": 60}
    assert look({}, silenced, {}) == []


@pytest.mark.parametrize("code", sorted(PER_TASK & CASES.keys()))
def test_what_a_task_accepts_is_not_found_for_it(look: Look, code: str) -> None:
    """A finding about a task names it, and the task's own option silences it."""
    case = CASES[code]
    (finding,) = look(case.task, case.conf, case.worker, case.other)
    assert set(finding.tasks) <= {"shop.charge", "shop.other"}
    given = case.task.get("idempotency", {})
    given = given.given if isinstance(given, Idempotency) else given
    accepting = {**case.task, "idempotency": {**given, "silenced_checks": [code]}}
    assert look(accepting, case.conf, case.worker, case.other) == []


def test_what_one_task_accepts_is_found_for_others(look: Look) -> None:
    """The app's own list silences a finding everywhere, a task's only for that task."""
    accepting = {"acks_late": False, "idempotency": {"silenced_checks": ["acks-late-off"]}}
    (finding,) = look(accepting, {}, {}, {"acks_late": False})
    assert (finding.what, finding.tasks) == ("task 'shop.other': acks_late=False", ("shop.other",))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("acks-late-of", r"has 'acks-late-of', which is no code of a finding; did you mean 'acks-late-off'\?"),
        ("table-ttl-off", "is not about single tasks; name it in idempotency_silenced_checks"),
    ],
)
def test_a_task_accepts_only_what_is_about_it(look: Look, code: str, why: str) -> None:
    """Anything else has no effect: the error names the task, and says where the code belongs."""
    with pytest.raises(ConfigurationError, match=rf"silenced_checks .*{why}.*'shop\.charge'"):
        look({"idempotency": {"silenced_checks": [code]}}, {}, {})


def test_a_kind_of_finding_must_be_known() -> None:
    """A code without a reason, or a finding about a task without its name, is a mistake in the check."""
    with pytest.raises(ValueError, match="no kind of finding is called 'odd'"):
        Finding(code="odd", what="it", remedy="that")
    with pytest.raises(ValueError, match="'acks-late-off' is about tasks; name them"):
        Finding(code="acks-late-off", what="it", remedy="that")


class TestWorker:
    """The same at the start of a real worker."""

    def start(self, app: Celery, mode: str | None) -> WorkController:
        """Make a worker, up to where its pool would start, of an app with one finding on this broker in memory."""
        app.task(do_nothing, name="shop.charge", base=IdempotentTask, shared=False)
        app.conf.idempotency_checks = mode
        return WorkController(app=app, pool="solo", concurrency=1)

    @pytest.mark.parametrize("mode", [None, "warn"])
    def test_findings_are_logged(self, app: Celery, caplog: pytest.LogCaptureFixture, mode: str | None) -> None:
        """One warning each, with its code as a field."""
        assert self.start(app, mode)
        (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert record.__dict__["idempotency_finding"] == "transport-never-redelivers"
        assert "Remedy: app.conf.broker_url" in record.getMessage()

    def test_an_ignoring_worker_asks_nothing(self, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
        """Nothing is looked at, so nothing is reported."""
        assert self.start(app, "ignore")
        assert not logged(caplog)

    def test_a_strict_worker_does_not_start(self, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
        """The last line says which findings kept it from starting, and how to accept them."""
        with pytest.raises(SystemExit, match=r"transport-never-redelivers.*idempotency_silenced_checks"):
            self.start(app, "error")
        assert caplog.records[-1].levelno == logging.CRITICAL

    def test_a_check_that_fails_stops_nobody(self, app: Celery, caplog: pytest.LogCaptureFixture) -> None:
        """A worker that cannot be checked goes its way, and says so; here it is Celery's own setting that is wrong."""
        app.conf.update(worker_eta_task_limit="many", broker_url=REDIS)
        assert self.start(app, "error")
        assert "check-failed: check_prefetch raised TypeError in check_prefetch (" in caplog.text

    def test_an_unknown_mode_is_a_wrong_setting(self, app: Celery) -> None:
        """As every wrong setting it stops the worker."""
        with pytest.raises(SystemExit, match=r"idempotency_checks='loud' is not one of"):
            self.start(app, "loud")

    @pytest.mark.parametrize(
        ("codes", "why"),
        [
            ("table-ttl-off", r"='table-ttl-off' is not a list of codes of findings"),
            (5, "=5 is not a list of codes of findings"),
            (["tabel-ttl-off"], r" has 'tabel-ttl-off', which is no code .*did you mean 'table-ttl-off'\?"),
            (["odd"], r" has 'odd', which is no code of a finding; there are acks-late-off, "),
        ],
        ids=str,
    )
    def test_a_finding_that_does_not_exist_cannot_be_silenced(self, app: Celery, codes: Any, why: str) -> None:
        """A typing error would otherwise be a finding that nobody expects any more."""
        app.conf.idempotency_silenced_checks = codes
        with pytest.raises(SystemExit, match=f"idempotency_silenced_checks{why}"):
            self.start(app, None)


def test_the_documents_explain_every_finding() -> None:
    """`docs/reference/checks.md` has a section for each code, with the reason that the finding itself gives."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "checks.md").read_text()
    sections = dict(re.findall(r"^### `([a-z-]+)`\n\n.+?\n\n\*Why:\* (.+)\.$", text, re.MULTILINE))
    assert sections == WHY


@pytest.mark.parametrize("option", ["key", "on_busy", "idempotncy", "idempotence"])
def test_an_option_beside_idempotency_is_named(option: str) -> None:
    """Celery takes any option of the decorator, and says nothing."""
    app = Celery("shop", broker=REDIS, set_as_current=False)
    app.conf.idempotency_store = MemoryStore()
    app.task(misdeclared, base=IdempotentTask, name="shop.misdeclared", shared=False, **{option: "order"})
    found = [each for each in run_checks(context_of(app)) if each.code == "option-misplaced"]
    assert [each.what for each in found] == [f"task 'shop.misdeclared' is declared with {option}="]


def test_attributes_of_a_users_own_class_are_theirs() -> None:
    """Also where they have the name of an option."""

    class Own(IdempotentTask):
        name = "shop.own"
        key = "theirs"

        def run(self) -> None:
            """Be a body."""

    app = Celery("shop", broker=REDIS, set_as_current=False)
    app.conf.idempotency_store = MemoryStore()
    app.register_task(Own())
    assert "option-misplaced" not in {each.code for each in run_checks(context_of(app))}


def context_of(app: Celery) -> CheckContext:
    """Return what is checked of an app that a prefork worker runs."""
    return CheckContext.of_app(app, "celery.concurrency.prefork")


def misdeclared(order: str) -> None:
    """Be a body."""
