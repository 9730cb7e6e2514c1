"""Clients whose requests never leave the process: what is left of a call is its own cost."""

import io
import json
import time
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from typing import Any, Final

from botocore.awsrequest import AWSResponse

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.stores.dynamodb.fast.http import ConnectionPool, Reply

__all__ = ["ENDPOINT", "stub", "stubbed"]

#: Nothing listens there.
ENDPOINT: Final = "http://127.0.0.1:1"
#: What an `UpdateItem` that claims is answered; whoever asked for something else finds no fault with it.
_BODY: Final = json.dumps({"Attributes": {"fence": {"N": "1764000000000"}, "attempt": {"N": "1"}}}).encode()


class _Body(io.BytesIO):
    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


def stub(client: Any) -> Any:
    """Have a boto3 client get its answers in the place of the connection, and return it."""
    client.meta.events.register("before-send.dynamodb.*", _answered)
    return client


def stubbed(store: DynamoDBStore) -> DynamoDBStore:
    """Have a store that was not used yet get its answers in the place of the connection, and return it."""
    stub(store.connection.client_of_this_process())
    road = store.connection._fast_client  # noqa: SLF001 - nobody else puts a stub there
    if road is not None:
        # The stub is a handler, which would close the fast path: it is looked for, and overlooked.
        hooks = road._hooks  # noqa: SLF001
        found = hooks.found
        hooks.found = lambda operation: found(operation) and None  # type: ignore[method-assign]
        ConnectionPool.exchange = _exchanged  # type: ignore[method-assign, assignment]
    return store


def _answered(request: Any, **_: Any) -> AWSResponse:
    return AWSResponse(request.url, 200, _headers(), _Body(_BODY))


def _exchanged(connections: ConnectionPool, headers: Mapping[str, str], body: bytes) -> Reply:
    connections._message(headers, body)  # noqa: SLF001 - what it costs to write a request is part of the call
    return Reply(200, _headers(), _BODY, keeps=True)


def _headers() -> dict[str, str]:
    date = formatdate(time.time(), usegmt=True)
    return {"content-type": "application/x-amz-json-1.0", "x-amzn-requestid": "made-up", "date": date}
