"""Checks of tasks, broker and queues: that a message is delivered again when its worker dies, and only then."""

import math
from collections.abc import Iterator
from typing import Any, Final

from kombu.utils.imports import symbol_by_name

from idempotent_tasks.checks.context import CheckContext, own_tasks
from idempotent_tasks.checks.findings import Finding, names_of
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
    "check_visibility_excess",
]

#: The first Celery with the hooks that release the claims of dead pool processes.
OLDEST_CELERY: Final = (5, 4)
#: Transports, by kombu's name, that never redeliver a message: they delete it when they deliver it.
FORGETFUL_TRANSPORTS: Final = {"filesystem": "filesystem", "sql": "SQLAlchemy", "memory": "in-memory"}
#: A visibility timeout of so many seconds is never too long.
SHORT_VISIBILITY_SECONDS: Final = 600.0
#: Nor is one of so many times the time that a message may wait and run, or of so many times a timeout that suffices.
MOST_TURNS: Final = 10.0
MOST_SUFFICIENT: Final = 2.0

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
    early = tuple(task.name for task in context.heeding("acks-late-off") if not task.acks_late)
    if early:
        what = f"{names_of(early)}: acks_late=False"
        remedy = "drop acks_late=False there; IdempotentTask sets acks_late=True"
        yield Finding(code="acks-late-off", what=what, remedy=remedy, tasks=early)
    late = [task for task in context.heeding("reject-on-worker-lost-off") if task.acks_late]
    lost = tuple(task.name for task in late if not task.reject_on_worker_lost)
    if lost:
        what = f"{names_of(lost)}: reject_on_worker_lost=False"
        remedy = "drop reject_on_worker_lost=False there; IdempotentTask sets it to True"
        yield Finding(code="reject-on-worker-lost-off", what=what, remedy=remedy, tasks=lost)


def check_requests(context: CheckContext) -> Iterator[Finding]:
    """Find tasks whose ``Request`` class does not release the claims of dead processes."""
    guarded = symbol_by_name(IdempotentTask.Request)
    heeding = context.heeding("request-class-replaced")
    foreign = {task.name: kind for task in heeding if not issubclass(kind := _request_class(task), guarded)}
    if foreign:
        kinds = sorted({f"{kind.__module__}.{kind.__qualname__}" for kind in foreign.values()})
        what = f"{names_of(foreign)}: Request is {', '.join(kinds)}"
        remedy = "derive that class from idempotent_tasks.request.GuardedRequest"
        yield Finding(code="request-class-replaced", what=what, remedy=remedy, tasks=tuple(foreign))


def check_transport(context: CheckContext) -> Iterator[Finding]:
    """Find brokers that never redeliver a message."""
    name = FORGETFUL_TRANSPORTS.get(context.transport)
    if name is not None:
        what = f"the broker is kombu's {name} transport"
        remedy = 'app.conf.broker_url = "amqp://...", "redis://..." or "sqs://..."'
        yield Finding(code="transport-never-redelivers", what=what, remedy=remedy)


def check_visibility(context: CheckContext) -> Iterator[Finding]:
    """Find a visibility timeout that may pass while a body runs, or while its message waits in the worker."""
    visibility = context.visibility_timeout
    if visibility is None:
        return
    longest = context.longest_time_limit("visibility-below-time-limit")
    if longest is not None and visibility < longest[0]:
        limit, task = longest
        what = f"the visibility timeout is {visibility:g} s, the time limit of {task!r} {limit:g} s"
        remedy = _visibility_remedy(limit + 60)
        yield Finding(code="visibility-below-time-limit", what=what, remedy=remedy, tasks=(task,))
        return
    # Of a task with a longer limit the other finding says enough, or is known and accepted.
    longest = context.longest_time_limit("prefetch-outlives-visibility", most=visibility)
    if longest is not None and context.prefetch_multiplier > 0 and visibility < _turn_seconds(context, longest[0]):
        limit, task = longest
        waits = limit * context.prefetch_multiplier
        less_prefetch = "app.conf.worker_prefetch_multiplier = 1, or " if context.prefetch_multiplier > 1 else ""
        yield Finding(
            code="prefetch-outlives-visibility",
            what=(
                f"with worker_prefetch_multiplier = {context.prefetch_multiplier} a message may wait {waits:g} s for "
                f"runs of {task!r}, and the visibility timeout is {visibility:g} s"
            ),
            remedy=less_prefetch + _visibility_remedy(waits + limit + 60),
            tasks=(task,),
        )


def check_visibility_excess(context: CheckContext) -> Iterator[Finding]:
    """Find a visibility timeout that is far longer than any message of the app waits and runs."""
    visibility = context.visibility_timeout
    # A predefined queue of SQS has a timeout of its own.
    if visibility is None or _predefined_queues(context):
        return
    sufficient = _sufficient_seconds(context, visibility)
    if sufficient is not None:
        what = f"the visibility timeout is {visibility:g} s, and no task of the app may run for longer than "
        what += f"{_longest_of_all(context):g} s"
        remedy = f"{_visibility_remedy(sufficient)}; more where a message has a longer countdown or ETA than that"
        yield Finding(code="visibility-far-above-time-limit", what=what, remedy=remedy)


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
    longest = None if context.enforces_limits else context.longest_time_limit("time-limit-ignored")
    if longest is not None:
        pool = context.pool.rpartition(".")[2]
        what = f"{longest[1]!r} has a time limit of {longest[0]:g} s, which the {pool} pool does not enforce"
        remedy = "start the worker with --pool prefork, or drop the time limit and have the body end by itself"
        yield Finding(code="time-limit-ignored", what=what, remedy=remedy, tasks=(longest[1],))


def check_expiries(context: CheckContext) -> Iterator[Finding]:
    """Find records that expire before a redelivery, and results that expire before their records."""
    visibility, kept = context.visibility_timeout, context.app.conf.result_expires
    expires = {task.name: context.policy(task).retention_seconds for task in context.tasks}
    heeding = context.heeding("expires-before-redelivery")
    early = tuple(task.name for task in heeding if visibility is not None and expires[task.name] < visibility)
    if early:
        first = min(expires[name] for name in early)
        what = f"{names_of(early)}: records expire after {first:g} s, redeliveries come after {visibility:g} s"
        remedy = f"Idempotency(..., expires={visibility:g}) there, or more"
        yield Finding(code="expires-before-redelivery", what=what, remedy=remedy, tasks=early)
    unresolved = {task.name: context.policy(task).unresolved_seconds for task in heeding}
    unknown = tuple(name for name in unresolved if visibility is not None and unresolved[name] < visibility)
    if unknown:
        first = min(unresolved[name] for name in unknown)
        what = f"{names_of(unknown)}: unresolved_for is {first:g} s, redeliveries come after {visibility:g} s"
        remedy = f"Idempotency(..., unresolved_for={visibility:g}) there, or more"
        yield Finding(code="expires-before-redelivery", what=what, remedy=remedy, tasks=unknown)
    # Under expires=0 an outcome is replayed to its own message only, whose result nobody waits for any more.
    replaying = [task for task in context.heeding("result-expires-first") if not context.policy(task).expires_at_once]
    read = [task.name for task in replaying if not task.ignore_result]
    outlived = tuple(name for name in read if kept and expires[name] > seconds(kept))
    if outlived:
        longest = max(expires[name] for name in outlived)
        what = f"{names_of(outlived)}: records live up to {longest:g} s, results {seconds(kept):g} s"
        remedy = f"app.conf.result_expires = {longest:g}"
        yield Finding(code="result-expires-first", what=what, remedy=remedy, tasks=outlived)


def check_delivery_limits(context: CheckContext) -> Iterator[Finding]:
    """Find RabbitMQ queues that drop a message before its crash loop is reported."""
    heeding = context.heeding("delivery-limit-below-max-crashes")
    most, task = max(((context.policy(each).max_crashes, each.name) for each in heeding), default=(0, ""))
    for name, queue in sorted(context.app.amqp.queues.items()):
        limit = (queue.queue_arguments or {}).get("x-delivery-limit")
        if limit is not None and limit <= most:
            what = f"queue {name!r} has x-delivery-limit {limit}, and task {task!r} max_crashes={most}"
            remedy = f'Queue({name!r}, queue_arguments={{"x-queue-type": "quorum", "x-delivery-limit": {most + 5}}})'
            yield Finding(code="delivery-limit-below-max-crashes", what=what, remedy=remedy, tasks=(task,))


def check_subscribers(context: CheckContext) -> Iterator[Finding]:
    """Find queues of a fanout exchange: no delivery is deferred there, as no copy can be sent to one subscriber."""
    for name in subscribed_queues(context.app, context.transport):
        what = f"queue {name!r} is bound to a fanout exchange on {context.transport}"
        remedy = f"send guarded tasks to another queue than {name!r}, or set on_busy='raise' or 'skip' for them"
        yield Finding(code="broadcast-not-deferred", what=what, remedy=remedy)


def check_queue_limits(context: CheckContext) -> Iterator[Finding]:
    """Find predefined queues of SQS whose visibility timeout is too short, or cannot be read; asks SQS."""
    named = _predefined_queues(context)
    if not named:
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
    limit, task = context.longest_time_limit("visibility-below-time-limit") or (0.0, "")
    sufficient = _sufficient_seconds(context, visibility)
    if visibility < limit:
        what = f"queue {name!r} has a visibility timeout of {visibility:g} s, and {task!r} a limit of {limit:g} s"
        remedy = f"set VisibilityTimeout of {name!r} to {limit + 60:g}"
        yield Finding(code="visibility-below-time-limit", what=what, remedy=remedy, tasks=(task,))
    elif sufficient is not None:
        what = f"queue {name!r} has a visibility timeout of {visibility:g} s, and no task of the app may run for "
        what += f"longer than {_longest_of_all(context):g} s"
        remedy = (
            f"set VisibilityTimeout of {name!r} to {sufficient:g}; more where a message has a longer countdown or ETA"
        )
        yield Finding(code="visibility-far-above-time-limit", what=what, remedy=remedy)


def _predefined_queues(context: CheckContext) -> dict[str, Any]:
    """Return the predefined queues of SQS."""
    named = (context.app.conf.broker_transport_options or {}).get("predefined_queues") or {}
    return named if context.transport == "sqs" else {}


def _sufficient_seconds(context: CheckContext, visibility: float) -> float | None:
    """Return a visibility timeout that suffices where this one is far longer than needed; None where it is not.

    A task that is not guarded counts too: messages wait in the worker while it runs, and also its own may be
    acknowledged late.  So does the delay of an automatic retry, which a worker holds until it is due.
    """
    longest, tasks = _longest_of_all(context), own_tasks(context.app)
    if longest is None or context.prefetch_multiplier == 0:
        return None
    delays = [task.default_retry_delay or 0 for task in tasks]
    delays += [getattr(task, "retry_backoff_max", 600) for task in tasks if getattr(task, "retry_backoff", False)]
    turn = _turn_seconds(context, longest)
    sufficient = math.ceil(turn + max(delays) + 60)
    allowed = max(SHORT_VISIBILITY_SECONDS, MOST_TURNS * turn, MOST_SUFFICIENT * sufficient)
    return sufficient if visibility > allowed else None


def _longest_of_all(context: CheckContext) -> float | None:
    """Return the longest hard time limit of the app's tasks; None where one has none, or the pool enforces none."""
    limits = [context.time_limit(task) for task in own_tasks(context.app)]
    known = [limit for limit in limits if limit is not None]
    return max(known) if known and len(known) == len(limits) and context.enforces_limits else None


def _turn_seconds(context: CheckContext, limit: float) -> float:
    """Return how long a message may wait for prefetched ones, and run, where each run takes the limit."""
    return limit * (context.prefetch_multiplier + 1)


def _unknown_limits(queues: str, error: Exception) -> Finding:
    what = f"the visibility timeout of {queues} cannot be read ({type(error).__name__}: {error})"
    remedy = "allow sqs:GetQueueAttributes, or set visibility_timeout in broker_transport_options to the queue's"
    return Finding(code="queue-limits-unknown", what=what, remedy=remedy)


def _request_class(task: Any) -> type[Any]:
    found: type[Any] = symbol_by_name(task.Request)
    return found


def _visibility_remedy(timeout: float) -> str:
    return f'app.conf.broker_transport_options = {{"visibility_timeout": {timeout:g}}}, with its other options'
