"""Checks of tasks, broker and queues: that a message is delivered again when its worker dies, and only then."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from kombu.utils.imports import symbol_by_name

from idempotent_tasks.checks.context import CheckContext
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.core.policy import seconds
from idempotent_tasks.messaging.queues import sqs_attributes, subscribed_queues
from idempotent_tasks.task import IdempotentTask

__all__ = [
    "check_acknowledgements",
    "check_celery",
    "check_delivery_limits",
    "check_expiries",
    "check_pool_limits",
    "check_prefetch",
    "check_queue_limits",
    "check_requests",
    "check_subscribers",
    "check_transport",
    "check_visibility",
]

#: How many tasks a finding names at most.
MOST_NAMED: Final = 5
#: The first Celery with the hooks that release the claims of dead pool processes.
OLDEST_CELERY: Final = (5, 4)
#: Transports, by kombu's name, that never redeliver a message: they delete it when they deliver it.
FORGETFUL_TRANSPORTS: Final = {"filesystem": "filesystem", "sql": "SQLAlchemy", "memory": "in-memory"}

#: botocore's options for the requests of a check: its own time-outs and retries take minutes.
SQS_CONFIG: Final = {"connect_timeout": 2, "read_timeout": 5, "retries": {"total_max_attempts": 1}}


def check_celery(context: CheckContext) -> Iterator[Finding]:
    """Find a Celery older than this library supports."""
    version = tuple(int(part) for part in context.celery_version.split(".")[:2])
    if version < OLDEST_CELERY:
        what = f"Celery is {context.celery_version}"
        remedy = "pip install 'celery>=5.4'"
        yield Finding(code="celery-unsupported", what=what, remedy=remedy)


def check_acknowledgements(context: CheckContext) -> Iterator[Finding]:
    """Find tasks whose message is acknowledged too early: before the body, or when its process dies."""
    early = [task.name for task in context.tasks if not task.acks_late]
    if early:
        what = f"{_names(early)}: acks_late=False"
        remedy = "drop acks_late=False there; IdempotentTask sets acks_late=True"
        yield Finding(code="acks-late-off", what=what, remedy=remedy)
    lost = [task.name for task in context.tasks if task.acks_late and not task.reject_on_worker_lost]
    if lost:
        what = f"{_names(lost)}: reject_on_worker_lost=False"
        remedy = "drop reject_on_worker_lost=False there; IdempotentTask sets it to True"
        yield Finding(code="reject-on-worker-lost-off", what=what, remedy=remedy)


def check_requests(context: CheckContext) -> Iterator[Finding]:
    """Find tasks whose ``Request`` class does not release the claims of dead processes."""
    guarded = symbol_by_name(IdempotentTask.Request)
    foreign = [task for task in context.tasks if not issubclass(_request_class(task), guarded)]
    if foreign:
        kinds = sorted({f"{kind.__module__}.{kind.__qualname__}" for kind in map(_request_class, foreign)})
        what = f"{_names([task.name for task in foreign])}: Request is {', '.join(kinds)}"
        remedy = "derive that class from idempotent_tasks.request.GuardedRequest"
        yield Finding(code="request-class-replaced", what=what, remedy=remedy)


def check_transport(context: CheckContext) -> Iterator[Finding]:
    """Find brokers that never redeliver a message."""
    name = FORGETFUL_TRANSPORTS.get(context.transport)
    if name is not None:
        what = f"the broker is kombu's {name} transport"
        remedy = 'app.conf.broker_url = "amqp://...", "redis://..." or "sqs://..."'
        yield Finding(code="transport-never-redelivers", what=what, remedy=remedy)


def check_visibility(context: CheckContext) -> Iterator[Finding]:
    """Find a visibility timeout that may pass while a body runs, or while its message waits in the worker."""
    visibility, longest = context.visibility_timeout, context.longest_time_limit
    if visibility is None or longest is None:
        return
    limit, task = longest
    if visibility < limit:
        what = f"the visibility timeout is {visibility:g} s, the time limit of {task!r} {limit:g} s"
        remedy = _visibility_remedy(limit + 60)
        yield Finding(code="visibility-below-time-limit", what=what, remedy=remedy)
    elif context.prefetch_multiplier > 0 and visibility < limit * (context.prefetch_multiplier + 1):
        waits = limit * context.prefetch_multiplier
        yield Finding(
            code="prefetch-outlives-visibility",
            what=(
                f"with worker_prefetch_multiplier = {context.prefetch_multiplier} a message may wait {waits:g} s for "
                f"runs of {task!r}, and the visibility timeout is {visibility:g} s"
            ),
            remedy=f"app.conf.worker_prefetch_multiplier = 1, or {_visibility_remedy(waits + limit + 60)}",
        )


def check_prefetch(context: CheckContext) -> Iterator[Finding]:
    """Find prefetch settings under which deferred messages, held until their ETA, keep other messages out."""
    if context.prefetch_multiplier == 0:
        what = "worker_prefetch_multiplier is 0"
        remedy = "app.conf.worker_prefetch_multiplier = 1"
        yield Finding(code="prefetch-unlimited", what=what, remedy=remedy)
    limit = getattr(context.app.conf, "worker_eta_task_limit", None)
    held = (context.concurrency or 1) * context.prefetch_multiplier
    if limit is not None and limit <= held:
        what = f"worker_eta_task_limit is {limit}, and the worker holds up to {held} messages"
        remedy = f"app.conf.worker_eta_task_limit = {max(1000, 10 * held)}, or leave it unset"
        yield Finding(code="eta-task-limit-low", what=what, remedy=remedy)


def check_pool_limits(context: CheckContext) -> Iterator[Finding]:
    """Find time limits that the pool does not enforce."""
    longest = context.longest_time_limit
    if longest is not None and context.pool != "celery.concurrency.prefork":
        pool = context.pool.rpartition(".")[2]
        what = f"{longest[1]!r} has a time limit of {longest[0]:g} s, which the {pool} pool does not enforce"
        remedy = "start the worker with --pool prefork, or drop the time limit and have the body end by itself"
        yield Finding(code="time-limit-ignored", what=what, remedy=remedy)


def check_expiries(context: CheckContext) -> Iterator[Finding]:
    """Find records that expire before a redelivery, and results that expire before their records."""
    visibility, kept = context.visibility_timeout, context.app.conf.result_expires
    expires = {task.name: seconds(context.policy(task).expires) for task in context.tasks}
    early = [name for name, length in expires.items() if visibility is not None and length < visibility]
    if early:
        first = min(expires[name] for name in early)
        what = f"{_names(early)}: records expire after {first:g} s, redeliveries come after {visibility:g} s"
        remedy = f"Idempotency(..., expires={visibility:g}) there, or more"
        yield Finding(code="expires-before-redelivery", what=what, remedy=remedy)
    replaying = [task.name for task in context.tasks if not task.ignore_result]
    outlived = [name for name in replaying if kept and expires[name] > seconds(kept)]
    if outlived:
        longest = max(expires[name] for name in outlived)
        what = f"{_names(outlived)}: records live up to {longest:g} s, results {seconds(kept):g} s"
        remedy = f"app.conf.result_expires = {longest:g}"
        yield Finding(code="result-expires-first", what=what, remedy=remedy)


def check_delivery_limits(context: CheckContext) -> Iterator[Finding]:
    """Find RabbitMQ queues that drop a message before its crash loop is reported."""
    most = max((context.policy(task).max_crashes or 0 for task in context.tasks), default=0)
    for name, queue in sorted(context.app.amqp.queues.items()):
        limit = (queue.queue_arguments or {}).get("x-delivery-limit")
        if limit is not None and limit <= most:
            what = f"queue {name!r} has x-delivery-limit {limit}, and a task has max_crashes={most}"
            remedy = f'Queue({name!r}, queue_arguments={{"x-queue-type": "quorum", "x-delivery-limit": {most + 5}}})'
            yield Finding(code="delivery-limit-below-max-crashes", what=what, remedy=remedy)


def check_subscribers(context: CheckContext) -> Iterator[Finding]:
    """Find queues of a fanout exchange: no delivery is deferred there, as no copy can be sent to one subscriber."""
    for name in subscribed_queues(context.app, context.transport):
        what = f"queue {name!r} is bound to a fanout exchange on {context.transport}"
        remedy = f"send guarded tasks to another queue than {name!r}, or set on_busy='raise' or 'skip' for them"
        yield Finding(code="broadcast-not-deferred", what=what, remedy=remedy)


def check_queue_limits(context: CheckContext) -> Iterator[Finding]:
    """Find predefined queues of SQS whose visibility timeout is too short, or cannot be read; asks SQS."""
    named = (context.app.conf.broker_transport_options or {}).get("predefined_queues") or {}
    if context.transport != "sqs" or not named:
        return
    own = (context.app.conf.broker_transport_options or {}).get("client-config") or {}
    try:
        with context.app.connection_for_read(transport_options={"client-config": SQS_CONFIG | own}) as connection:
            channel = connection.channel()
            for name in sorted(named):
                yield from _check_queue(context, channel, name)
    except Exception as error:  # noqa: BLE001 - kombu's, botocore's, or a credential provider's
        yield _unknown_limits(f"the queues {', '.join(map(repr, sorted(named)))}", error)


def _check_queue(context: CheckContext, channel: Any, name: str) -> Iterator[Finding]:
    try:
        visibility = float(sqs_attributes(channel, name)["VisibilityTimeout"])
    except Exception as error:  # noqa: BLE001 - botocore's, or a credential provider's
        yield _unknown_limits(f"queue {name!r}", error)
        return
    limit, task = context.longest_time_limit or (0.0, "")
    if visibility < limit:
        what = f"queue {name!r} has a visibility timeout of {visibility:g} s, and {task!r} a limit of {limit:g} s"
        remedy = f"set VisibilityTimeout of {name!r} to {limit + 60:g}"
        yield Finding(code="visibility-below-time-limit", what=what, remedy=remedy)


def _unknown_limits(queues: str, error: Exception) -> Finding:
    what = f"the visibility timeout of {queues} cannot be read ({type(error).__name__}: {error})"
    remedy = "allow sqs:GetQueueAttributes, or set visibility_timeout in broker_transport_options to the queue's"
    return Finding(code="queue-limits-unknown", what=what, remedy=remedy)


def _request_class(task: Any) -> type[Any]:
    found: type[Any] = symbol_by_name(task.Request)
    return found


def _visibility_remedy(timeout: float) -> str:
    return f'app.conf.broker_transport_options = {{"visibility_timeout": {timeout:g}}}, with its other options'


def _names(tasks: Sequence[str]) -> str:
    """Return the names of tasks, `MOST_NAMED` at most, as text."""
    shown = ", ".join(map(repr, tasks[:MOST_NAMED]))
    more = len(tasks) - MOST_NAMED
    return f"task {shown}" if len(tasks) == 1 else f"tasks {shown}" + (f" and {more} more" if more > 0 else "")
