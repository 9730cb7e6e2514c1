"""No command ends in a traceback, whatever is wrong with the app, its broker, its store or this machine."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from celery import Celery
from click.testing import CliRunner, Result

from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask, S3Results
from idempotent_tasks.cli import idempotency
from tests.testbed.processes import free_port

SECRET = "wJalrXUtnFEMI"
NOBODY = f"http://127.0.0.1:{free_port()}"
NO_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
DEVELOPMENT = "python -m idempotent_tasks dynamodb --table keys"
#: Every command, as it is written where the store is what is wrong.
STORE_COMMANDS = (
    ["list"],
    ["show", "shop.charge#17"],
    ["release", "shop.charge#17", "--yes"],
    ["forget", "shop.charge#17", "--yes"],
    ["purge", "--status", "failed", "--before", "1d", "--yes"],
    ["watch", "--once"],
    ["create-table"],
)


def charge(order_id: int) -> None:
    """A task body."""


def app_of(policy: Any = None, **conf: Any) -> Celery:
    """Return an app with one guarded task, not bound yet, and these settings."""
    app = Celery("shop", broker=conf.pop("broker_url", "memory://"), set_as_current=False)
    app.conf.update({"idempotency_store": f"dynamodb://local:local@{NOBODY.removeprefix('http://')}/keys", **conf})
    app.task(name="shop.charge", base=IdempotentTask, shared=False, idempotency=policy or Idempotency())(charge)
    return app


def run(app: Celery, *words: str) -> Result:
    """Run a command; whatever happens, it ends by exiting, without a traceback, and shows no password."""
    result = CliRunner().invoke(idempotency, list(words), obj=SimpleNamespace(app=app))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert SECRET not in result.output
    return result


@pytest.fixture
def broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that raises when it is imported."""
    (tmp_path / "broken_tasks.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_tasks", raising=False)
    return "broken_tasks"


@pytest.mark.usefixtures("broken_module")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: app_of(imports=["no_such_module"]), "cannot be loaded: ModuleNotFoundError: No module named 'no_such"),
        (lambda: app_of(imports=["broken_tasks"]), "cannot be loaded: ZeroDivisionError: division by zero, raised in"),
        (lambda: app_of({"keys": "order_id"}), "keys"),
        (lambda: app_of(idempotency_observers=["broken_tasks:seen"]), "idempotency_observers cannot be imported"),
        (lambda: app_of(idempotency_stroe="memory://"), "did you mean 'idempotency_store'?"),
        (lambda: app_of(idempotency_store=None), "has no idempotency store"),
        (lambda: app_of(idempotency_store="dynamodb://eu-west-1/my keys"), "'my keys' is no name of a DynamoDB table"),
    ],
)
@pytest.mark.parametrize("command", ["check", "list", "create-table", "template --format iam", "watch --once"])
def test_an_app_that_cannot_be_loaded(make: Callable[[], Celery], said: str, command: str) -> None:
    """Each command ends with 2, and says what is wrong and where."""
    result = run(make(), *command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.mark.usefixtures("broken_module")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: app_of(broker_url="nope://"), "the broker's transport cannot be used (KeyError: 'No such transport"),
        (lambda: app_of(broker_url=f"redis://:{SECRET}@localhost:{SECRET}/0"), "the broker's transport cannot be used"),
        (lambda: app_of(worker_pool="no.such.pool:Pool"), "worker_pool='no.such.pool:Pool' cannot be used"),
        (lambda: app_of(Idempotency(store_failures=["no.such:Error"])), "store_failures='no.such:Error' cannot be"),
        (
            lambda: app_of(Idempotency(on_replay="broken_tasks:seen")),
            "on_replay='broken_tasks:seen' cannot be imported",
        ),
        (lambda: app_of(idempotency_silenced_checks=["tabel-missing"]), "did you mean 'table-missing'?"),
    ],
)
def test_a_worker_that_could_not_start(make: Callable[[], Celery], said: str) -> None:
    """The check ends with 2, and says why."""
    result = run(make(), "check")
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert said in result.stderr


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: app_of(result_expires="soon"), "check-failed: check_expiries raised"),
        (lambda: app_of(worker_eta_task_limit="many"), "check-failed: check_prefetch raised TypeError"),
        (
            lambda: app_of(broker_url="redis://", broker_transport_options={"visibility_timeout": "long"}),
            "check-failed: check_visibility raised ValueError",
        ),
        (
            lambda: app_of(broker_url="sqs://", broker_transport_options={"predefined_queues": {"celery": {}}}),
            "queue-limits-unknown: the visibility timeout of",
        ),
        (
            lambda: app_of(
                idempotency_results_bucket=S3Results("results", endpoint_url=NOBODY, region="eu-west-1"),
            ),
            "results-bucket-refuses: HeadBucket",
        ),
    ],
)
def test_a_check_that_cannot_be_made(make: Callable[[], Celery], said: str) -> None:
    """It is a finding, and the checks that follow are made all the same."""
    result = run(make(), "check")
    assert result.exit_code == 1, result.output
    assert said in result.stdout
    assert "store-unreachable" in result.stdout


def test_a_ready_made_client() -> None:
    """A store that no check may use is none that fails, and the command says that it was not checked."""
    client = boto3.client("dynamodb", endpoint_url=NOBODY, region_name="eu-west-1")
    store = DynamoDBStore("keys", client=client)
    result = run(app_of(idempotency_store=store, broker_url="redis://", task_time_limit=600), "check")
    assert result.exit_code == 0, result.output
    assert "DynamoDBStore('keys' at" in result.stderr
    assert "is not checked: its client= was ready-made" in result.stderr


@pytest.mark.parametrize("words", STORE_COMMANDS, ids=" ".join)
class TestWithoutAWS:
    """A new laptop: each command names what to do for AWS, and what to start for development."""

    def end(self, words: list[str], store: Any) -> str:
        """Run a command and the check; return what the command said, which ends with 3."""
        result = run(app_of(idempotency_store=store), *words)
        assert result.exit_code == 3, result.output
        assert DEVELOPMENT in result.stderr
        checked = run(app_of(idempotency_store=store), "check")
        assert checked.exit_code == 1, checked.output
        assert DEVELOPMENT in checked.stdout
        return result.stderr

    def test_without_credentials(self, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
        """The URL to set is said as well: the one in the settings is of AWS."""
        for name in NO_CREDENTIALS:
            monkeypatch.delenv(name)
        said = self.end(words, "dynamodb://eu-west-1/keys")
        assert "no credentials were found" in said
        assert "give the worker a role" in said
        assert 'app.conf.idempotency_store = "dynamodb://local:local@localhost:8000/keys"' in said

    def test_without_a_region(self, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
        """The same."""
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        said = self.end(words, DynamoDBStore("keys"))
        assert "You must specify a region" in said
        assert "fix the store's region" in said

    @pytest.mark.parametrize("region", ["eu-nowhere-1", "eu%20west%201"])
    def test_in_no_region(self, words: list[str], region: str) -> None:
        """A Region that cannot be, or that is none, is one that does not answer."""
        assert "keys" in self.end(words, f"dynamodb://{region}/keys")

    def test_with_a_profile_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
        """The same."""
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        assert "nobody" in self.end(words, "dynamodb://eu-west-1/keys")
