"""The demo's command line and its exit codes; the demo itself is an acceptance test."""

import os
import sys
from json import loads
from pathlib import Path

import pytest
from click.testing import CliRunner

from idempotent_tasks.__main__ import main
from idempotent_tasks.demo import command
from idempotent_tasks.demo.command import own_environment
from idempotent_tasks.demo.errors import PartError
from idempotent_tasks.demo.journal import Entry, What
from idempotent_tasks.demo.ledger import Ledger
from idempotent_tasks.demo.plan import Payment
from idempotent_tasks.demo.screen import Screen


def ledger_of(workload: tuple[Payment, ...], charges: int) -> Ledger:
    """Return the ledger of a phase that charged each payment so many times."""
    ledger = Ledger(workload)
    for payment in workload:
        ledger.add(Entry(at=1.0, what=What.PUBLISHED, payment=payment.name))
        for what in (What.STARTED, What.CHARGED, What.FINISHED) * charges:
            ledger.add(Entry(at=2.0, what=what, payment=payment.name, pid=1))
    return ledger


def charge_with(monkeypatch: pytest.MonkeyPatch, charges: int) -> None:
    """Make the library charge each payment so many times, and the plain task twice."""

    def run_both(workload: tuple[Payment, ...], screen: Screen) -> dict[str, Ledger]:
        ledgers = {"plain Celery task": ledger_of(workload, 2), "IdempotentTask": ledger_of(workload, charges)}
        for title, ledger in ledgers.items():
            with screen.phase(title, "") as watch:
                watch(ledger)
        return ledgers

    monkeypatch.setattr(command, "_run_both", run_both)


@pytest.mark.parametrize(("charges", "exit_code"), [(0, 1), (1, 0), (2, 1)])
def test_exit_code_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, charges: int, exit_code: int
) -> None:
    """Lost payments and second charges of `IdempotentTask` end with 1; the files are written all the same."""
    charge_with(monkeypatch, charges)
    files = {name: tmp_path / name for name in ("svg", "json")}
    options = ["--payments", "8", "--svg", str(files["svg"]), "--json", str(files["json"])]
    result = CliRunner().invoke(main, ["demo", *options])
    assert result.exit_code == exit_code, result.output
    figures = loads(files["json"].read_text(encoding="utf-8"))
    assert figures["promise_kept"] == (exit_code == 0)
    assert figures["plain"]["charges"] == 16
    assert figures["idempotent"]["charges"] == 8 * charges
    assert files["svg"].read_text(encoding="utf-8").startswith("<svg")


def test_demo_that_cannot_run_has_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not start ends with 2 and says why."""

    def fail(*_: object) -> None:
        raise PartError("no port is free")

    monkeypatch.setattr(command, "_run_both", fail)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 2
    assert "no port is free" in result.output


@pytest.mark.parametrize("count", ["7", "61", "many"])
def test_number_of_payments_is_checked(count: str) -> None:
    """Too few show nothing, too many take too long."""
    result = CliRunner().invoke(main, ["demo", "--payments", count])
    assert result.exit_code == 2
    assert "--payments" in result.output


@pytest.mark.parametrize("option", ["--svg", "--json"])
def test_file_in_no_folder_is_refused_before_the_demo(tmp_path: Path, option: str) -> None:
    """A file that cannot be written is refused before the demo runs for a minute."""
    result = CliRunner().invoke(main, ["demo", option, str(tmp_path / "absent" / "file")])
    assert result.exit_code == 2
    assert "there is no folder" in result.output


def test_missing_extra_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rich there is no demo, but the command that installs it."""
    monkeypatch.delitem(sys.modules, "idempotent_tasks.demo.command")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 2
    assert "pip install '.[demo]'" in result.output


def test_callers_accounts_brokers_and_proxies_do_not_reach_the_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are gone inside, credentials are made up, and everything is as before outside."""
    foreign = {"AWS_PROFILE": "production", "CELERY_BROKER_URL": "amqp://production", "https_proxy": "http://proxy"}
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with own_environment(tmp_path):
        assert not foreign.keys() & os.environ.keys()
        assert os.environ["AWS_ACCESS_KEY_ID"] == "demo"
        assert os.environ["TMPDIR"] == str(tmp_path)
    assert dict(os.environ) == before
