"""Which of a store's requests went through boto3's client, and which past it."""

from typing import Any

from idempotent_tasks.stores.dynamodb_client import Connection, Refused, Written

__all__ = ["ask", "client_requests"]


def client_requests(connection: Connection) -> list[str]:
    """Return a list to which each operation is added that the client of this process sends from now on."""
    sent: list[str] = []

    def note(model: Any, **_: Any) -> None:
        sent.append(model.name)

    connection.client_of_this_process().meta.events.register("before-call.dynamodb", note)
    return sent


def ask(connection: Connection, key: str = "key") -> Written | Refused:
    """Send one request that changes nothing."""
    return connection.request("get_item", TableName="table", Key={"id": {"S": key}})
