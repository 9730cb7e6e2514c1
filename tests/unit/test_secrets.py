"""Secrets in the settings: used, and shown by no report of Celery's and no error of ours."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app import utils
from celery.bin.celery import celery as command
from celery.worker.control import conf as inspect_conf
from click.testing import CliRunner

from idempotent_tasks import ConfigurationError, DynamoDBStore, S3Results
from idempotent_tasks.settings import settings_of

SECRET = "wJalrXUtnFEMI"
STORE = f"dynamodb://AKIAKEY:{SECRET}@localhost:8000/keys"
BUCKET = f"s3://results?endpoint_url=http://AKIAKEY:{SECRET}@localhost:9000"


def app_with(namespace: str = "", **settings: Any) -> Celery:
    """Return an app of its own with these settings, as Django spells them where there is a namespace."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    if namespace:
        source = {f"{namespace}_{name.upper()}": value for name, value in settings.items()}
        app.config_from_object(SimpleNamespace(**source), namespace=namespace)
    else:
        app.conf.update(settings)
    return app


@pytest.mark.parametrize("namespace", ["", "CELERY"])
@pytest.mark.parametrize("read", [False, True], ids=["before-they-are-read", "after"])
def test_celerys_reports_mask_them(namespace: str, read: bool) -> None:
    """``celery report`` and ``celery inspect conf``, whether or not a task was used before."""
    app = app_with(namespace, idempotency_store=STORE, idempotency_results_bucket=BUCKET)
    if read:
        assert isinstance(settings_of(app).store, DynamoDBStore)
    for report in (app.bugreport(), json.dumps(inspect_conf(SimpleNamespace(app=app)))):
        assert "idempotency_store" in report.lower()
        assert "idempotency_results_bucket" in report.lower()
        assert SECRET not in report


def test_the_command_masks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody pastes into an issue."""
    app = app_with(idempotency_store=STORE)
    monkeypatch.setattr("celery.bin.celery.find_app", lambda *_, **__: app)
    result = CliRunner().invoke(command, ["-A", "shop", "report"])
    assert result.exit_code == 0, result.output
    assert "idempotency_store" in result.output
    assert SECRET not in result.output


def test_nothing_else_is_masked() -> None:
    """Our other settings are shown, and so is what Celery shows; what it masks stays masked."""
    shown = app_with(idempotency_store_failures=["shop:Declined"], idempotency_expires=60, worker_concurrency=3).conf
    table = shown.table()
    assert (table["idempotency_store_failures"], table["idempotency_expires"]) == (["shop:Declined"], 60)
    assert table["worker_concurrency"] == 3
    for name in ("API_TOKEN", "database_password", "beat_secret"):
        assert re.search(utils.HIDDEN_SETTINGS, name)


@pytest.mark.parametrize(
    "url",
    [
        f"dynamodb://AKIAKEY:{SECRET}",
        f"dynamodb://AKIAKEY:{SECRET}/keys",
        f"dynamodb://eu-west-1/keys?token={SECRET}",
        f"dynamodb://eu-west-1/keys?fast=true&session_token={SECRET}",
        f"dynamodb://eu-west-1/keys#{SECRET}",
        f"dynamodb://AKIAKEY:{SECRET}@localhost:8000/keys?x=1",
        f"dynamodb://AKIAKEY:{SECRET}?x@localhost:8000",
        f"dynamodb:AKIAKEY:{SECRET}@localhost:8000/keys",
        f"AKIAKEY:{SECRET}@localhost:8000/keys",
        f"{SECRET}@localhost:8000/keys",
    ],
)
def test_an_error_of_a_store_url_shows_none(url: str) -> None:
    """Whatever was mistyped: the scheme, the place, the name of a parameter."""
    for read in (DynamoDBStore.from_url, lambda url: settings_of(app_with(idempotency_store=url))):
        try:
            shown = repr(read(url))
        except ConfigurationError as error:
            shown = str(error)
        assert SECRET not in shown


@pytest.mark.parametrize(
    "url", [f"s3://results?token={SECRET}", f"s3://AKIAKEY:{SECRET}@results", f"s3://[{SECRET}@results"]
)
def test_an_error_of_a_bucket_url_shows_none(url: str) -> None:
    """The same for the bucket."""
    try:
        shown = repr(S3Results.from_url(url))
    except ConfigurationError as error:
        shown = str(error)
    assert SECRET not in shown
