"""What ``celery -A tests.support.worker_app`` loads: the app that the environment describes."""

from functools import wraps
from typing import Any

import kombu
from celery import signals
from celery.concurrency.asynpool import AsynPool
from celery.worker.request import Request
from kombu.transport.redis import Transport

from idempotent_tasks import IdempotentTask, S3Results
from idempotent_tasks.core.delivery import DEFERRALS_HEADER
from tests.support.app import AppConfig, build_app

#: The first kombu with ``unacked_restore_interval``; older ones sweep 10 s after a worker's start, then every 100 s.
FIRST_WITH_SWEEPS = (5, 7)


def sweep_each_second() -> None:
    """Have older versions of kombu do what `tests.testbed.brokers.redis` asks newer ones to do."""
    if tuple(map(int, kombu.__version__.split(".")[:2])) >= FIRST_WITH_SWEEPS:
        return
    register = Transport.register_with_event_loop

    def register_and_sweep(transport: Any, connection: Any, loop: Any) -> None:
        register(transport, connection, loop)
        loop.call_repeatedly(1, _restore_lost, transport.cycle)

    Transport.register_with_event_loop = register_and_sweep


def _restore_lost(cycle: Any) -> None:
    channel = next((channel for channel in cycle._channels if channel.active_queues), None)
    if channel is not None:
        channel.qos.restore_visible(num=channel.unacked_restore_limit, interval=1)


sweep_each_second()
config = AppConfig.of_this_process()
journal = config.journal
app = build_app(config)

if config.blind_to_exits:
    # As where its event comes too early, and the timer that would look again has long to go.
    AsynPool._event_process_exit = lambda pool, hub, process: pool._untrack_child_process(process, hub)
    AsynPool.timers = {}


def say_when_done(method: str, event: str) -> None:
    """Tell what the worker's parent process knows of a delivery by now, once a method of its request returns.

    It may be later than the process that runs the body; and what a worker that is asked to stop does not know to be
    accepted it forgets, while that process waits for half a minute to be heard (``celery.concurrency.asynpool``'s
    ``AsynPool.flush``, ``billiard.pool.Worker._ensure_messages_consumed``).
    """
    done = getattr(Request, method)

    @wraps(done)
    def told(request: Request, *args: Any, **kwargs: Any) -> None:
        done(request, *args, **kwargs)
        journal.write(event, id=request.id)

    setattr(Request, method, told)


say_when_done("on_accepted", "accepted")
say_when_done("acknowledge", "acknowledged")

put = S3Results.put


def hold_put(results: S3Results, data: bytes, expires_at: float) -> str:
    """Hold a delivery, if the test wants that, whose result is stored in the bucket and is not committed."""
    address = put(results, data, expires_at)
    journal.pass_gate("stored-in-bucket")
    return address


S3Results.put = hold_put  # type: ignore[assignment, method-assign]


@signals.task_success.connect
def hold_success(sender: Any, **_: Any) -> None:
    """Hold a guarded delivery, if the test wants that, when all that follows it was sent and nobody was told."""
    if isinstance(sender, IdempotentTask):
        journal.pass_gate("before-note")


# Receivers are called in the order of this list: the gate stands before the library's note.
signals.task_success.receivers.insert(0, signals.task_success.receivers.pop())


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    """Tell the test that this worker consumes."""
    journal.write("worker-ready", worker=sender.hostname)


@signals.task_received.connect
def say_received(request: Any, **_: Any) -> None:
    """Tell that the worker took a delivery from its broker, and what the broker says of it; its turn may be later."""
    headers, info = request.message.headers, request.message.delivery_info
    journal.write(
        "received",
        id=request.id,
        deferrals=headers.get(DEFERRALS_HEADER, 0),
        routing_key=info.get("routing_key"),
        redelivered=info.get("redelivered"),
        # SQS counts deliveries, and RabbitMQ's quorum queues count redeliveries.
        receive_count=info.get("sqs_message", {}).get("Attributes", {}).get("ApproximateReceiveCount"),
        delivery_count=headers.get("x-delivery-count", 0),
        group=info.get("sqs_message", {}).get("Attributes", {}).get("MessageGroupId"),
        attributes=info.get("sqs_message", {}).get("MessageAttributes", {}).get("tenant", {}).get("StringValue"),
    )


@signals.task_prerun.connect
def say_begun(task_id: str, task: Any, **_: Any) -> None:
    """Tell that a delivery reached a process of the pool, and hold it, if the test wants that, before all else."""
    journal.write("begun", id=task_id, deferrals=(task.request.headers or {}).get(DEFERRALS_HEADER, 0))
    journal.pass_gate("before-claim")


@signals.task_postrun.connect
def say_over(task_id: str, task: Any, state: str, **_: Any) -> None:
    """Tell how a delivery ended; hold a guarded one, if the test wants that, before nothing but its acknowledgement.

    A plain one that is killed there would rightly run again.
    """
    journal.write("over", id=task_id, state=state)
    if isinstance(task, IdempotentTask):
        journal.pass_gate("before-ack")


@signals.before_task_publish.connect
def hold_message(sender: str, **_: Any) -> None:
    """Hold, if the test wants that, what the worker is about to send to a task of this name."""
    journal.pass_gate(f"before-sending-{sender}")
