"""A claim and a commit as two requests and nothing else: no guard that writes twice takes less of a machine.

The bodies are those of a guarded run, recorded once, with only the key exchanged; nothing is signed, no answer is read
for more than its status, and nothing guards the task.
"""

import json
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.speed.calls import recorded_writes
from benchmarks.speed.errors import SpeedError
from benchmarks.speed.place import REGION

__all__ = ["Write", "bare_writes"]

#: Writes the record of a key, and returns when the table has answered.
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
