"""Clients whose requests never leave the process: what is left of a call is its own cost."""

import io
import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any, Final

from botocore.awsrequest import AWSResponse

from benchmarks.speed.contenders import HAS_FAST_ROAD
from benchmarks.speed.errors import SpeedError
from idempotent_tasks import DynamoDBStore

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


def stubbed(store: DynamoDBStore, *, stock: bool) -> DynamoDBStore:
    """Have a store get its answers in the place of the connection, and return it.

    Args:
        store: one that was not used yet.
        stock: whether it is on boto3's road although there is another.

    Raises:
        SpeedError: it is on its fast road, whose place to answer in is not known here.
    """
    if HAS_FAST_ROAD and not stock:
        raise SpeedError("the fast road of DynamoDBStore cannot be stubbed yet: fill in benchmarks.speed.stubbing")
    stub(store.connection.client_of_this_process())
    return store


def _answered(request: Any, **_: Any) -> AWSResponse:
    headers = {"content-type": "application/x-amz-json-1.0", "date": formatdate(time.time(), usegmt=True)}
    return AWSResponse(request.url, 200, headers, _Body(_BODY))
