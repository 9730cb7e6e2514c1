"""An app's settings, read through Celery's own configuration: names, namespaces, stores and observers."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.events import Event, Lost, log_event
from idempotent_tasks.observers import prometheus_metrics
from idempotent_tasks.settings import settings_of
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.s3 import S3Results
from idempotent_tasks.testing import MemoryStore
from tests.support.logs import logged
from tests.support.receipts import MemoryReceipts
from tests.support.stores import MemoryBucket

told: list[Event] = []


def observer(event: Event) -> None:
    """Be found by a setting that names ``module:attribute``."""
    told.append(event)


not_callable = 7
receipts = MemoryReceipts()


def app_with(**settings: Any) -> Celery:
    """Return an app with these settings."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(settings)
    return app


def lost() -> Lost:
    """Return an event."""
    return Lost(task="shop.charge", task_id="4f1c", key="k", worker="w1@shop")


def test_defaults_fill_what_a_task_leaves_open() -> None:
    """Every policy field has a setting of its name."""
    app = app_with(idempotency_store="memory://", idempotency_on_busy="raise", idempotency_expires=60)
    settings = settings_of(app)
    assert settings.defaults == {"on_busy": "raise", "expires": 60}
    assert Idempotency(expires=5).over(settings.defaults).expires == 5
    assert Idempotency(expires=5).over(settings.defaults).on_busy == "raise"


def test_a_results_bucket() -> None:
    """A URL, a name, or whatever keeps results; nothing by default."""
    for raw in ("s3://results/shop", "results/shop"):
        results = settings_of(app_with(idempotency_store="memory://", idempotency_results_bucket=raw)).results
        assert isinstance(results, S3Results)
        assert (results.bucket, results.prefix) == ("results", "shop/")
    bucket = MemoryBucket()
    assert settings_of(app_with(idempotency_store="memory://", idempotency_results_bucket=bucket)).results is bucket
    assert settings_of(app_with(idempotency_store="memory://")).results is None


@pytest.mark.parametrize("raw", [5, b"results", "https://results", ["results"]], ids=repr)
def test_a_wrong_results_bucket(raw: Any) -> None:
    """Is an error that says what to write."""
    with pytest.raises(ConfigurationError, match=r"write s3://BUCKET/PREFIX"):
        settings_of(app_with(idempotency_store="memory://", idempotency_results_bucket=raw))


def test_django_style_settings() -> None:
    """``CELERY_IDEMPOTENCY_*`` of a settings module are the same settings."""
    app = Celery("shop", set_as_current=False)
    module = SimpleNamespace(CELERY_IDEMPOTENCY_STORE="memory://", CELERY_IDEMPOTENCY_ON_BUSY="raise", DEBUG=True)
    app.config_from_object(module, namespace="CELERY")
    settings = settings_of(app)
    assert isinstance(settings.store, MemoryStore)
    assert settings.defaults == {"on_busy": "raise"}


def test_a_django_style_typo_is_refused() -> None:
    """A namespace does not hide an unknown name."""
    app = Celery("shop", set_as_current=False)
    module = SimpleNamespace(CELERY_IDEMPOTENCY_STORE="memory://", CELERY_IDEMPOTENCY_ON_BUZY="raise")
    app.config_from_object(module, namespace="CELERY")
    with pytest.raises(ConfigurationError, match="did you mean 'idempotency_on_busy'"):
        settings_of(app)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("idempotency_stroe", "did you mean 'idempotency_store'?"),
        ("idempotency_expire", "did you mean 'idempotency_expires'?"),
        ("idempotency_downstream", "each task has its own, Idempotency(downstream=...)"),
        ("idempotency_zzz", "known are ['idempotency_store', 'idempotency_observers', 'idempotency_checks'"),
    ],
)
def test_an_unknown_setting_is_met_with_a_hint(name: str, hint: str) -> None:
    """A typing error does not silently leave a default in force."""
    with pytest.raises(ConfigurationError, match=f"no setting '{name}'") as caught:
        settings_of(app_with(idempotency_store="memory://", **{name: 1}))
    assert hint in str(caught.value)


def test_a_wrong_value_of_a_setting_is_named() -> None:
    """Settings are checked like a task's own fields."""
    with pytest.raises(ConfigurationError, match="on_busy='queue'"):
        settings_of(app_with(idempotency_store="memory://", idempotency_on_busy="queue"))


def test_a_store_instance_is_used_as_it_is() -> None:
    """Whoever needs more than a URL passes the store."""
    store = MemoryStore()
    assert settings_of(app_with(idempotency_store=store)).store is store


@pytest.mark.parametrize("raw", ["dynamodb://eu-west-1/keys", DynamoDBStore("keys", region="eu-west-1")], ids=repr)
def test_a_dynamodb_store_by_url_or_instance(raw: Any) -> None:
    """A table is named without being asked: nothing connects while settings are read."""
    assert isinstance(settings_of(app_with(idempotency_store=raw)).store, DynamoDBStore)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (None, "app 'shop' has no idempotency store"),
        ("redis://:hunter2@localhost/0", r"unusable idempotency store \('redis'\)"),
        ("memory", r"unusable idempotency store \('memory'\)"),
        (7, r"unusable idempotency store \('int'\)"),
        (MemoryStore, r"unusable idempotency store \('type'\)"),
    ],
    ids=repr,
)
def test_an_unusable_store_is_refused_with_the_remedy(raw: Any, what: str) -> None:
    """The error says what to set, and quotes no password of a URL."""
    with pytest.raises(ConfigurationError, match=what) as caught:
        settings_of(app_with(idempotency_store=raw))
    assert "set app.conf.idempotency_store to" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_are_read_once() -> None:
    """A delivery does not pay for reading settings, and every delivery of an app shares one store."""
    app = app_with(idempotency_store="memory://")
    assert settings_of(app) is settings_of(app)


def test_each_app_has_its_own_settings() -> None:
    """Two apps in one process share nothing by accident."""
    first, second = app_with(idempotency_store="memory://"), app_with(idempotency_store="memory://")
    assert settings_of(first).store is not settings_of(second).store


def test_another_store_is_noticed() -> None:
    """A test that gives its app a fresh store gets it."""
    app = app_with(idempotency_store=MemoryStore(), idempotency_on_busy="raise")
    settings_of(app)
    fresh = MemoryStore()
    app.conf.idempotency_store = fresh
    assert settings_of(app).store is fresh
    assert settings_of(app).defaults == {"on_busy": "raise"}


def test_events_are_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    """Without observers the events go to the log; with an empty list nowhere."""
    settings_of(app_with(idempotency_store="memory://")).observe(lost())
    assert [record.levelno for record in logged(caplog)] == [logging.ERROR]
    caplog.clear()
    settings_of(app_with(idempotency_store="memory://", idempotency_observers=[])).observe(lost())
    assert logged(caplog) == []


@pytest.mark.parametrize(
    "raw",
    [observer, [observer], (observer,), f"{__name__}:observer", [f"{__name__}:observer"]],
    ids=["callable", "list", "tuple", "name", "list-of-names"],
)
def test_observers_are_callables_or_their_names(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One observer needs no list."""
    received: list[Event] = []
    monkeypatch.setattr(f"{__name__}.told", received)
    settings_of(app_with(idempotency_store="memory://", idempotency_observers=raw)).observe(lost())
    assert received == [lost()]


@pytest.mark.parametrize(
    "raw",
    ["no_such_module:observer", f"{__name__}:no_such_name", f"{__name__}:not_callable", [7], 7],
    ids=["module", "attribute", "not-callable", "number-in-list", "number"],
)
def test_an_unusable_observer_is_refused(raw: Any) -> None:
    """A typing error in an observer's name is not found by the first lost claim."""
    with pytest.raises(ConfigurationError, match="idempotency_observers"):
        settings_of(app_with(idempotency_store="memory://", idempotency_observers=raw))


@pytest.mark.parametrize(
    "raw",
    [receipts, [receipts], (receipts,), f"{__name__}:receipts", [f"{__name__}:receipts"]],
    ids=["object", "list", "tuple", "name", "list-of-names"],
)
def test_receipts_of_steps_are_objects_or_their_names(raw: Any) -> None:
    """One needs no list."""
    app = app_with(idempotency_store="memory://", idempotency_step_receipts=raw)
    assert settings_of(app).step_receipts == (receipts,)
    assert settings_of(app).defaults == {}


def test_receipts_of_steps_are_none_by_default() -> None:
    """Most apps have none."""
    assert settings_of(app_with(idempotency_store="memory://")).step_receipts == ()


@pytest.mark.parametrize(
    "raw",
    ["no_such_module:receipts", f"{__name__}:no_such_name", f"{__name__}:not_callable", MemoryReceipts, 7, None, ""],
    ids=["module", "attribute", "another-object", "class", "number", "none", "empty"],
)
def test_unusable_receipts_of_steps_are_refused(raw: Any) -> None:
    """The error says what to give: nobody would miss the rows that are not purged."""
    with pytest.raises(ConfigurationError, match=r"idempotency_step_receipts.*SQLAlchemyReceipts\(\.\.\.\)"):
        settings_of(app_with(idempotency_store="memory://", idempotency_step_receipts=[raw]))


@pytest.mark.parametrize(
    ("raw", "served"),
    [
        (9464, ("127.0.0.1", 9464)),
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:0", ("::1", 0)),
        (None, None),
    ],
)
def test_where_metrics_are_served(raw: Any, served: tuple[str, int] | None) -> None:
    """A port of this machine's own, or of an address."""
    assert settings_of(app_with(idempotency_store="memory://", idempotency_prometheus_port=raw)).prometheus == served


@pytest.mark.parametrize("raw", ["", "http", "127.0.0.1", -1, 65_536, True, "localhost:", "²"])
def test_what_is_no_port(raw: Any) -> None:
    """The error says how one is written."""
    with pytest.raises(ConfigurationError, match="neither PORT nor ADDRESS:PORT"):
        settings_of(app_with(idempotency_store="memory://", idempotency_prometheus_port=raw))


def test_what_is_served_is_counted_once() -> None:
    """The port brings the observer along, beside the log or what is named, unless that is the observer itself."""
    port = {"idempotency_store": "memory://", "idempotency_prometheus_port": 9464}
    assert settings_of(app_with(**port)).observe.observers == (log_event, prometheus_metrics.observe)
    named = app_with(**port, idempotency_observers=["prometheus", observer])
    assert settings_of(named).observe.observers == (prometheus_metrics.observe, observer)
