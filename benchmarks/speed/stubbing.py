"""Clients whose requests never leave the process: what is left of a call is its own cost."""

import io
import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any, Final

from botocore.awsrequest import AWSResponse

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


def stubbed(store: DynamoDBStore) -> DynamoDBStore:
    """Have a store that was not used yet get its answers in the place of the connection, and return it."""
    stub(store.connection.client_of_this_process())
    return store


def _answered(request: Any, **_: Any) -> AWSResponse:
    headers = {"content-type": "application/x-amz-json-1.0", "date": formatdate(time.time(), usegmt=True)}
    return AWSResponse(request.url, 200, headers, _Body(_BODY))
