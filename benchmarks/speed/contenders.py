"""Who is measured: plain Celery, Powertools for AWS Lambda in a task, and this library sending itself or by boto3.

And two that guard nothing, for comparison: a task that makes a client, and one that sends what two writes come to.
"""

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
from celery import Celery
from kombu import Exchange, Queue

from benchmarks.chaos.contenders import REDELIVERED
from benchmarks.speed.bench import Place, SpeedError
from benchmarks.speed.calls import (
    IN_PROGRESS_SECONDS,
    REGION,
    Order,
    charge,
    guarded_by_powertools,
    recorded_writes,
    store_at,
)
from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask

__all__ = ["CACHED", "CHARGE", "NOTE", "Contender", "build_app", "load", "names", "new_app", "queue_named"]

#: Writes the record of a key in a bare request, and returns when the table has answered.
Write = Callable[[str], None]

TIMEOUT_SECONDS: Final = 10.0
#: An answer has less, and a server that sends it at once has it in one packet.
ANSWER_BYTES: Final = 65_536
WRITTEN: Final = b"HTTP/1.1 200"
#: The stand-in wants to see whose a request is, and looks at no signature.
ACCOUNT: Final = f"AWS4-HMAC-SHA256 Credential=local/20260101/{REGION}/dynamodb/aws4_request, Signature=none"


def bare_writes(endpoint: str, table: str) -> tuple[Write, Write]:
    """Return what claims a key and what commits it, over one connection that is kept open.

    Args:
        endpoint: the URL.
        table: its name.
    """
    url = urlsplit(endpoint)
    connection = socket.create_connection((url.hostname, url.port), TIMEOUT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    claim, commit = (partial(_write, connection, url.netloc, *_halves(each, table)) for each in recorded_writes())
    return claim, commit


def _halves(parameters: Mapping[str, Any], table: str) -> tuple[bytes, bytes]:
    """Return the body before and after the key."""
    key = parameters["Key"]["id"]["S"]
    body = json.dumps({**parameters, "TableName": table}).encode()
    before, after = body.split(key.encode())
    return before, after


def _write(connection: socket.socket, host: str, before: bytes, after: bytes, key: str) -> None:
    body = b"%bbare#%b%b" % (before, key.encode(), after)
    head = (
        f"POST / HTTP/1.1\r\nHost: {host}\r\nX-Amz-Target: DynamoDB_20120810.UpdateItem\r\n"
        f"Content-Type: application/x-amz-json-1.0\r\nAuthorization: {ACCOUNT}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    answer = connection.recv(ANSWER_BYTES)
    if not answer.startswith(WRITTEN):
        raise SpeedError(f"the table answered a bare write with {answer[:200]!r}")


#: The tasks: the guarded one, the one that also remembers outcomes in its process, and a plain one to follow them.
CHARGE: Final = "speed.charge"
CACHED: Final = "speed.charge_cached"
NOTE: Final = "speed.note"
CACHE_SECONDS: Final = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to guard a task."""

    #: What the tables say of it.
    title: str
    #: Registers the tasks `CHARGE` and `CACHED`.
    declare: Callable[[Celery, Place], None]
    #: The package that must be there.
    package: str = "celery"


def _declare_plain(app: Celery, _place: Place) -> None:
    for name in (CHARGE, CACHED):
        app.task(charge, name=name, shared=False, **REDELIVERED)


def _declare_client(app: Celery, place: Place) -> None:
    client = cache(lambda: _client(place))

    def charge_beside_client(order: Order) -> Order:
        client()
        return charge(order)

    app.task(charge_beside_client, name=CHARGE, shared=False, **REDELIVERED)


def _declare_bare(app: Celery, place: Place) -> None:
    # Made on first use, in the pool's process: it has a connection.
    writes = cache(lambda: bare_writes(place.endpoint, place.table))

    def charge_between_writes(order: Order) -> Order:
        claim, commit = writes()
        claim(order["id"])
        charged = charge(order)
        commit(order["id"])
        return charged

    app.task(charge_between_writes, name=CHARGE, shared=False, **REDELIVERED)


def _declare_powertools(app: Celery, place: Place) -> None:
    for name, config in ((CHARGE, {}), (CACHED, {"use_local_cache": True})):
        _declare_guarded(app, place, name, config)


def _declare_guarded(app: Celery, place: Place, name: str, config: dict[str, Any]) -> None:
    # Made on first use, in the pool's process: a boto3 client must not be shared through a fork.
    guarded = cache(lambda: guarded_by_powertools(_client(place), place.table, name, **config))

    def charge_guarded(order: Order) -> Order:
        return guarded()(order=order)

    app.task(charge_guarded, name=name, shared=False, **REDELIVERED)


def _declare_ours(app: Celery, place: Place) -> None:
    _declare_on(store_at(place.endpoint, place.table), app)


def _declare_ours_stock(app: Celery, place: Place) -> None:
    _declare_on(store_at(place.endpoint, place.table, stock=True), app)


def _declare_on(store: DynamoDBStore, app: Celery) -> None:
    app.conf.idempotency_store = store
    for name, memory in ((CHARGE, None), (CACHED, CACHE_SECONDS)):
        policy = Idempotency(key="order.id", cache=memory)
        app.task(charge, base=IdempotentTask, name=name, shared=False, idempotency=policy)


def _client(place: Place) -> Any:
    return boto3.client("dynamodb", region_name=REGION, endpoint_url=place.endpoint)


_CONTENDERS: Final = {
    "plain": Contender(title="plain Celery", declare=_declare_plain),
    "client": Contender(title="plain Celery and a boto3 client", declare=_declare_client),
    "bare": Contender(title="plain Celery and two bare requests", declare=_declare_bare),
    "powertools": Contender(title="Powertools in a task", declare=_declare_powertools, package="aws_lambda_powertools"),
    "ours": Contender(title="IdempotentTask", declare=_declare_ours),
    "ours-stock": Contender(title="IdempotentTask over boto3", declare=_declare_ours_stock),
}


def load(name: str) -> Contender:
    """Return a contender."""
    return _CONTENDERS[name]


def names(*wanted: str) -> Sequence[str]:
    """Return those of the named contenders whose package is there."""
    return [name for name in wanted if find_spec(_CONTENDERS[name].package) is not None]


def build_app(place: Place) -> Celery:
    """Return the app with the contender's tasks registered; nothing global is touched."""
    # The usual way to bound how long a worker that died holds a key.
    app = new_app(place, IN_PROGRESS_SECONDS)
    load(place.contender).declare(app, place)
    app.task(note, name=NOTE, shared=False)
    return app


def new_app(place: Place, limit_seconds: float) -> Celery:
    """Return an app over a place's servers and queue, without tasks, whose tasks have a hard time limit."""
    app = Celery(place.prefix, set_as_current=False)
    app.conf.update(
        broker_url=place.broker_url,
        broker_transport_options=place.transport_options,
        broker_connection_retry_on_startup=True,
        result_backend=place.result_backend,
        result_backend_transport_options={"global_keyprefix": f"{place.prefix}."},
        result_expires=3600,
        task_queues=[queue_named(place.queue, place.queue_arguments)],
        task_default_queue=place.queue,
        task_default_exchange=place.queue,
        task_default_routing_key=place.queue,
        # Its announcements and questions would be counted with the tasks.
        worker_enable_remote_control=False,
        task_time_limit=limit_seconds,
    )
    return app


def queue_named(name: str, arguments: Mapping[str, Any] | None = None) -> Queue:
    """Return a queue with an exchange of its own, and with the arguments of its declaration."""
    return Queue(name, Exchange(name), routing_key=name, queue_arguments=arguments or None)


def note() -> None:
    """Follow another task."""
