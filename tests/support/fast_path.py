"""Which of a store's requests went through boto3's client, and which past it; and what time boto3 signs with."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.auth
import pytest
from botocore.awsrequest import AWSResponse

from idempotent_tasks.stores.dynamodb.client import Connection, Refused, Succeeded

__all__ = ["answered", "ask", "client_requests", "sign_at"]


def client_requests(connection: Connection) -> list[str]:
    """Return a list to which each operation is added that the client of this process sends from now on."""
    sent: list[str] = []
    client = connection.client_of_this_process()
    fast = connection._fast_client
    if fast is None:
        client.meta.events.register("before-call.dynamodb", lambda model, **_: sent.append(model.name))
        return sent
    send = fast.send_by_client

    def noted(operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        sent.append(client.meta.method_to_api_mapping[operation])
        return send(operation, parameters)

    # A handler would be seen, and close the fast path.
    fast.send_by_client = noted  # type: ignore[method-assign]
    return sent


def ask(connection: Connection, key: str = "key") -> Succeeded | Refused:
    """Send one request that changes nothing."""
    return connection.request("get_item", TableName="table", Key={"id": {"S": key}})


def sign_at(patch: pytest.MonkeyPatch, now: Callable[[], datetime]) -> None:
    """Have boto3 sign with this time (UTC) instead of the machine's."""
    if hasattr(botocore.auth, "get_current_datetime"):
        patch.setattr(botocore.auth, "get_current_datetime", now)
    else:
        # An older botocore, which asks the class itself for a time without a zone.
        utc = SimpleNamespace(utcnow=lambda: now().astimezone(UTC).replace(tzinfo=None))
        patch.setattr(botocore.auth, "datetime", SimpleNamespace(datetime=utc))


def answered(session: boto3.Session, bodies: dict[str, bytes]) -> list[str]:
    """Have a session's clients answered with these bodies by operation, or ``{}``, and return the URLs asked for."""
    urls: list[str] = []

    def answer(event_name: str, request: Any, **_: Any) -> AWSResponse:
        urls.append(request.url)
        body = bodies.get(event_name.rpartition(".")[2], b"{}")
        response = AWSResponse(
            request.url, 200, {"Content-Type": "application/x-amz-json-1.0", "x-amzn-RequestId": "made-up"}, None
        )
        response._content = body
        return response

    session.events.register("before-send", answer)
    return urls
