"""What ``import idempotent_tasks`` does beside importing, as JSON: run by itself, in a fresh interpreter."""

import gc
import json
import os
import sys
from typing import Any, Final

import botocore.client

import benchmarks.speed.worker_imports  # noqa: F401 - what is there before

__all__: list[str] = []

_SOCKETS: Final = ("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.sendto")
#: Where boto3 and botocore read their configuration from.
_CONFIGURATION: Final = (f"{os.sep}.aws{os.sep}", f"{os.sep}.boto", "boto.cfg")

sockets: list[str] = []
files: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _SOCKETS:
        sockets.append(event)
    elif event == "open" and any(part in str(arguments[0]) for part in _CONFIGURATION):
        files.append(str(arguments[0]))


def main() -> None:
    """Import, and print what was seen."""
    # With what botocore would find, were it to look.
    os.environ.pop("AWS_CONFIG_FILE", None)
    os.environ.pop("AWS_SHARED_CREDENTIALS_FILE", None)
    sys.addaudithook(_watch)
    import idempotent_tasks  # noqa: F401, PLC0415 - this is what is looked at

    clients = sum(isinstance(each, botocore.client.BaseClient) for each in gc.get_objects())
    print(json.dumps({"sockets": len(sockets), "clients": clients, "configuration files": len(files)}))  # noqa: T201


if __name__ == "__main__":
    main()
