"""What importing a module does beside that, as JSON: ``python -m benchmarks.speed.watched_import idempotent_tasks``."""

import gc
import json
import os
import sys
from contextlib import ExitStack
from importlib import import_module
from tempfile import NamedTemporaryFile
from typing import Any, Final

__all__: list[str] = []

#: What any worker that speaks to DynamoDB has imported, whoever guards its tasks: ``import celery`` alone loads next to
#: nothing, what a worker runs on is loaded when it is first used.
MODULES: Final = (
    "boto3",
    "botocore.session",
    "celery",
    "celery.app.task",
    "celery.app.trace",
    "celery.backends.base",
    "celery.signals",
    "celery.worker.request",
    "kombu.utils.json",
)
for _name in MODULES:
    import_module(_name)

_SOCKETS: Final = ("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.sendto")
#: What names the files from which boto3 and botocore read their configuration.
_CONFIGURATION: Final = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "BOTO_CONFIG")

sockets: list[str] = []
files: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _SOCKETS:
        sockets.append(event)
    elif event == "open" and str(arguments[0]) in map(os.environ.get, _CONFIGURATION):
        files.append(str(arguments[0]))


def main() -> None:
    """Import, and print what was seen."""
    with ExitStack() as stack:
        for name in _CONFIGURATION:
            # They must be there: one that is not is not opened.
            os.environ[name] = stack.enter_context(NamedTemporaryFile()).name
        sys.addaudithook(_watch)
        import_module(sys.argv[1])
    from botocore.client import BaseClient

    clients = sum(isinstance(each, BaseClient) for each in gc.get_objects())
    print(json.dumps({"sockets": len(sockets), "clients": clients, "configuration files": len(files)}))  # noqa: T201


if __name__ == "__main__":
    main()
