"""The command ``demo``: run both phases from one seed, print the verdict, write the files that were asked for."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from idempotent_tasks.demo import servers, tasks
from idempotent_tasks.demo.ledger import Ledger
from idempotent_tasks.demo.plan import VISIBILITY_TIMEOUT_SECONDS, Payment, draw
from idempotent_tasks.demo.scenario import Phase, play
from idempotent_tasks.demo.screen import Screen
from idempotent_tasks.demo.timeline import Panel, picture
from idempotent_tasks.emulator import unwinding_on_signals

__all__ = ["own_environment", "run"]

_PLAIN = "plain Celery task"
_IDEMPOTENT = "IdempotentTask"
_TABLE = "demo-payments"
#: Variables that would direct the demo to other brokers and accounts.
_FOREIGN_PREFIXES = ("AWS_", "BOTO_", "CELERY_")
#: The demo connects to this machine only, which a proxy could not reach.
_PROXY_SUFFIX = "_PROXY"
_FAKE_ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def run(*, payments: int, seed: int, svg: Path | None, json: Path | None, live: bool) -> bool:
    """Run the demo.

    Args:
        payments: the number of payments.
        seed: the seed of the workload and the kills.
        svg: the file for the timeline, or None.
        json: the file for the figures, or None.
        live: whether to draw a live display instead of printing lines.

    Returns:
        Whether `IdempotentTask` charged each payment exactly once.

    Raises:
        DemoError: a server or a worker did not start or died, or a phase took too long.
    """
    screen = Screen(Console(), live=live)
    screen.say(f"{payments} payments, seed {seed}: both tasks get the same payments, duplicates and kills.\n")
    ledgers = _run_both(draw(payments, seed), screen)
    kept = ledgers[_IDEMPOTENT].figures().promise_kept
    screen.end(kept=kept)
    if svg:
        svg.write_text(picture([Panel(title, ledger) for title, ledger in ledgers.items()]), encoding="utf-8")
    if json:
        json.write_text(_report(seed, ledgers, kept=kept), encoding="utf-8")
    return kept


def _run_both(workload: tuple[Payment, ...], screen: Screen) -> dict[str, Ledger]:
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_signals())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="idempotent-tasks-demo-")))
        stack.enter_context(own_environment(folder))
        broker_url = stack.enter_context(servers.broker(folder / "broker"))
        store_url = stack.enter_context(servers.store(folder, _TABLE))
        plain = Phase(task=tasks.PLAIN, name="plain", broker_url=f"{broker_url}/0", store_url=store_url, folder=folder)
        idempotent = Phase(
            task=tasks.IDEMPOTENT, name="idempotent", broker_url=f"{broker_url}/1", store_url=store_url, folder=folder
        )
        return {
            _PLAIN: _run_one(_PLAIN, "acks_late=True, reject_on_worker_lost=True", plain, workload, screen),
            _IDEMPOTENT: _run_one(_IDEMPOTENT, 'idempotency=Idempotency(key="payment")', idempotent, workload, screen),
        }


def _run_one(title: str, options: str, phase: Phase, workload: tuple[Payment, ...], screen: Screen) -> Ledger:
    explanation = f"{options}; real workers, visibility timeout {VISIBILITY_TIMEOUT_SECONDS} s"
    with screen.phase(title, explanation) as watch:
        return play(phase, workload, watch)


def _report(seed: int, ledgers: dict[str, Ledger], *, kept: bool) -> str:
    figures = {
        "seed": seed,
        "promise_kept": kept,
        "plain": asdict(ledgers[_PLAIN].figures()),
        "idempotent": asdict(ledgers[_IDEMPOTENT].figures()),
    }
    return dumps(figures, indent=2) + "\n"


@contextmanager
def own_environment(folder: Path) -> Iterator[None]:
    """Hide the caller's brokers, accounts and proxies from this process and its children.

    Args:
        folder: ``TMPDIR`` of the children: killed ones leave their temporary files there.
    """
    before = dict(os.environ)
    for name in filter(_foreign, before):
        del os.environ[name]
    os.environ.update(_FAKE_ACCOUNT, TMPDIR=str(folder))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _foreign(name: str) -> bool:
    return name.startswith(_FOREIGN_PREFIXES) or name.upper().endswith(_PROXY_SUFFIX)
