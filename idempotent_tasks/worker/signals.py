"""Celery signal handlers: the checks of a worker that starts, keys of calls by name, releases of dropped deliveries."""

import logging
import os
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from billiard.pool import EX_OK, EX_RECYCLE
from celery import current_app
from celery.concurrency import get_implementation
from celery.signals import (
    before_task_publish,
    celeryd_after_setup,
    task_failure,
    task_received,
    task_revoked,
    task_success,
    worker_init,
    worker_process_shutdown,
    worker_shutdown,
)
from celery.worker import state

from idempotent_tasks.checks import CheckContext, Finding, run_checks
from idempotent_tasks.checks.tasks import unguarded_tasks
from idempotent_tasks.core.delivery import KEY_HEADER, KEY_OPTION, explicit_key, following_signatures
from idempotent_tasks.core.keys import check_explicit_key
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.unrecorded import UnrecordedOutcomes
from idempotent_tasks.errors import ConfigurationError, IdempotencyError
from idempotent_tasks.messaging import callbacks
from idempotent_tasks.messaging.claim_request import request_or_none
from idempotent_tasks.settings import Settings, settings_of
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.task import IdempotentTask, guarded_tasks
from idempotent_tasks.worker.reaper import ClaimReaper
from idempotent_tasks.worker.request import GuardedRequest, is_prefork, remember_worker

__all__ = [
    "carry_key",
    "check_command_line_worker",
    "check_worker",
    "finish_outcomes",
    "finish_outcomes_of_child",
    "free_reservation",
    "note_dispatch",
    "prepare_worker",
    "release_what_runs",
    "warn_of_ignored_keys",
]

logger = logging.getLogger("idempotent_tasks")

#: Seconds for which a process that ends waits for the outcomes that it could not record: half of the 10 s that Docker
#: gives a container between SIGTERM and SIGKILL.
FINISH_SECONDS: Final = 5.0
#: The exit codes of a pool's process that ends because the worker shuts down warm, or to be replaced.
_CLEAN_EXITS: Final = (EX_OK, EX_RECYCLE)


class _Refusal:
    """Makes a publish raise an error: kombu multiplies a message's ``expiration``, which this is set as.

    See ``kombu.Producer.publish``.  An error that a receiver of the signal raises is only logged by Celery.
    """

    def __init__(self, error: IdempotencyError) -> None:
        self._error = error

    def __mul__(self, _: object) -> NoReturn:
        raise self._error


@before_task_publish.connect(weak=False, dispatch_uid="idempotent_tasks.carry_key")
def carry_key(sender: str, body: Any, headers: dict[str, Any], properties: dict[str, Any], **_: Any) -> None:
    """Move ``idempotency_key=`` of a call by name from the message's properties to its headers.

    Celery puts unknown options of ``send_task``, and of a signature whose task this process does not have, among the
    properties (``celery.app.amqp.AMQP``).  The publish raises what `idempotent_tasks.core.keys.check_explicit_key`
    does, and `ConfigurationError` if a task with a key, this one or one that follows it, is known here and is not
    guarded.

    Args:
        sender: the task's name.
        body, headers, properties: the message's.
    """
    key = properties.pop(KEY_OPTION, None)
    try:
        if key is not None:
            headers[KEY_HEADER] = check_explicit_key(key, sender)
            _refuse_unguarded(sender)
        for signature in following_signatures(body):
            # A group or chord hands its key to its members, which are refused when they are sent.
            if not signature.get("subtask_type") and (signature.get("options") or {}).get(KEY_OPTION) is not None:
                _refuse_unguarded(str(signature.get("task")))
    except IdempotencyError as error:
        properties["expiration"] = _Refusal(error)


def _refuse_unguarded(name: str) -> None:
    # As `send_task` does: `tasks` would finalise the app.
    task = current_app._tasks.get(name)  # noqa: SLF001
    if task is not None and not isinstance(task, IdempotentTask):
        msg = (
            "idempotency_key= has no effect on a task that is not guarded; give it base=IdempotentTask, or drop the key"
        )
        raise ConfigurationError(msg, name)


class _Ignored:
    """The tasks of this process whose messages had a key that has no effect."""

    def __init__(self) -> None:
        self.names: set[str] = set()


@task_received.connect(weak=False, dispatch_uid="idempotent_tasks.warn_of_ignored_keys")
def warn_of_ignored_keys(request: Any, **_: Any) -> None:
    """Log once for each task that is not guarded that its messages have a key, which has no effect.

    Args:
        request: the ``celery.worker.request.Request`` of a message.
    """
    if isinstance(request.task, IdempotentTask) or explicit_key(request.request_dict) is None:
        return
    ignored, name = this_process().own(_Ignored).names, request.task.name
    if name not in ignored:
        ignored.add(name)
        logger.warning(
            "task %r is not guarded, so the idempotency_key of its messages has no effect: each delivery runs its "
            "body; give it base=IdempotentTask, or have its publishers drop the key",
            name,
        )


@worker_init.connect(weak=False, dispatch_uid="idempotent_tasks.prepare_worker")
def prepare_worker(sender: Any, **_: Any) -> None:
    """Register a worker before it makes its consumer, and check it unless ``celery worker`` has started it.

    ``celery worker`` sends this signal before it sets up logging (``celery.apps.worker.Worker.setup_logging``, which a
    program's own worker does not have): what is logged now would be in no log file, without time and level.

    Args:
        sender: the ``celery.worker.WorkController`` that starts.

    Raises:
        SystemExit: as `check_worker`.
    """
    if guarded_tasks(sender.app):
        remember_worker(sender)
    if not hasattr(sender, "setup_logging"):
        check_worker(sender)


@celeryd_after_setup.connect(weak=False, dispatch_uid="idempotent_tasks.check_command_line_worker")
def check_command_line_worker(instance: Any, **_: Any) -> None:
    """Check a worker of ``celery worker`` after it has set up logging, before it has a process or a message."""
    check_worker(instance)


def check_worker(worker: Any) -> None:
    """Log what weakens the guarantee, and stop a worker whose configuration cannot keep it.

    Args:
        worker: the ``celery.worker.WorkController`` that starts.

    Raises:
        SystemExit: a setting is wrong, or ``idempotency_checks`` is ``error`` and there is a finding.  Celery swallows
            any other exception of a receiver (``celery.utils.dispatch.signal.Signal.send``).
    """
    tasks = guarded_tasks(worker.app)
    unguarded = [] if tasks else list(unguarded_tasks(worker.app))
    if not tasks and (not unguarded or worker.app.conf.get("idempotency_store") is None):
        # Everything else needs a store.
        _report(unguarded)
        return
    for task in tasks:
        # A framework may have replaced a class's __call__ since its task was bound.
        type(task).keep_guard_outermost()
    try:
        settings, pool_cls = settings_of(worker.app), get_implementation(worker.pool_cls)
        _serve_metrics(settings, pool_cls)
        if settings.disabled:
            logger.warning("idempotency is DISABLED: bodies run unguarded, each delivery of a message runs its body")
            return
        _check_pool(settings.store, pool_cls)
        for task in tasks:
            task.policy_under(settings)
        context = CheckContext.of_worker(worker, pool_cls.__module__)
    except ConfigurationError as error:
        _refuse(error)
    if context.settings.checks != "ignore":
        _check(context)


@task_failure.connect(weak=False, dispatch_uid="idempotent_tasks.note_dispatch")
@task_success.connect(weak=False, dispatch_uid="idempotent_tasks.note_dispatch")
def note_dispatch(sender: Any, **_: Any) -> None:
    """Note that a task's callbacks were sent: Celery sends these signals after them and after the chord's count."""
    if isinstance(sender, IdempotentTask):
        callbacks.sent(sender.request)


@task_revoked.connect(weak=False, dispatch_uid="idempotent_tasks.free_reservation")
def free_reservation(sender: Any, request: Any, *, terminated: bool, expired: bool, **_: Any) -> None:
    """Release the reservation of a delivery that the worker drops: revoked before it ran, or past its ``expires``."""
    # With a terminated process its claim is released.
    if not isinstance(sender, IdempotentTask) or terminated:
        return
    settings = settings_of(sender.app)
    if settings.disabled or sender.policy_under(settings).at_publish == "send":
        return
    claim = request_or_none(sender, settings, request, request.args, request.kwargs)
    if claim is not None:
        this_process().own(ClaimReaper).withdraw(settings, claim, "Expired" if expired else "Revoked")


@worker_shutdown.connect(weak=False, dispatch_uid="idempotent_tasks.release_what_runs")
def release_what_runs(**_: Any) -> None:
    """Release the claims of bodies that a shutdown cut short, each once its process is gone.

    The interpreter waits for these releases before it exits.
    """
    for request in list(state.active_requests):
        if isinstance(request, GuardedRequest) and not request.acknowledged:
            request.release_claim("WorkerShutdown", crashed=False)


@worker_process_shutdown.connect(weak=False, dispatch_uid="idempotent_tasks.finish_outcomes_of_child")
def finish_outcomes_of_child(exitcode: int, **_: Any) -> None:
    """Wait a little, in a pool's process that ends by itself, until the outcomes that it keeps are recorded.

    So do, at a cold shutdown, the processes that run no body: Celery lets them end by themselves.  One that was sent
    SIGTERM is killed soon.

    Args:
        exitcode: of the process.
    """
    if exitcode in _CLEAN_EXITS:
        this_process().own(UnrecordedOutcomes).finish(FINISH_SECONDS)


@worker_shutdown.connect(weak=False, dispatch_uid="idempotent_tasks.finish_outcomes")
def finish_outcomes(**_: Any) -> None:
    """Do the same in the worker's own process, which runs the bodies of all pools but prefork, at a warm shutdown."""
    # As `celery.worker.state.maybe_shutdown` does: an exit code of 0 terminates too.
    if state.should_terminate is None or state.should_terminate is False:
        this_process().own(UnrecordedOutcomes).finish(FINISH_SECONDS)


def _check_pool(store: Any, pool_cls: Any) -> None:
    if isinstance(store, MemoryStore) and is_prefork(pool_cls):
        msg = (
            "a memory:// store cannot guard a prefork worker, whose processes do not share memory; "
            'use "dynamodb://REGION/TABLE", or the pool "solo" or "threads"'
        )
        raise ConfigurationError(msg)


def _serve_metrics(settings: Settings, pool_cls: Any) -> None:
    if settings.prometheus is None:
        return
    from idempotent_tasks.observers.prometheus_metrics import FOLDER_VARIABLE, serve  # noqa: PLC0415 - optional extra

    if is_prefork(pool_cls) and not os.environ.get(FOLDER_VARIABLE):
        msg = (
            "idempotency_prometheus_port is set, but a prefork worker's processes count each for itself; "
            f"set the environment variable {FOLDER_VARIABLE} to a folder of this worker's own, empty when it starts"
        )
        raise ConfigurationError(msg)
    address, port = settings.prometheus
    try:
        port = serve(port, address)
    except OSError:
        # The port is taken, perhaps by a worker that is ending: no reason not to start.
        logger.exception("the metrics cannot be served on %s:%s; give each worker a port of its own", address, port)
    else:
        logger.info("metrics are served on %s:%s", address, port)


def _check(context: CheckContext) -> None:
    try:
        found = run_checks(context)
    except Exception:
        # A check that fails must not keep a worker from its messages.
        logger.exception("the start-up checks failed")
        return
    _report(found)
    # Nor must it where findings stop a worker.
    codes = ", ".join(sorted({finding.code for finding in found} - {"check-failed"}))
    if codes and context.settings.checks == "error":
        _refuse(f"the checks found {codes}; fix it, or name it in idempotency_silenced_checks")


def _report(found: Iterable[Finding]) -> None:
    for finding in found:
        logger.warning("%s", finding, extra={"idempotency_finding": finding.code})


def _refuse(why: object) -> NoReturn:
    logger.critical("the worker does not start: %s", why)
    raise SystemExit(f"idempotent_tasks: {why}")
