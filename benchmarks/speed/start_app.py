"""What ``celery -A benchmarks.speed.start_app`` loads: an app of one task, with the imports of its contender alone."""

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from celery import Celery, signals

#: The environment variable with the options, as JSON.
VARIABLE: Final = "IDEMPOTENT_TASKS_SPEED_START"
NOTE: Final = "start.note"
#: The files that say when something was done.
READY, ENDED = "ready", "ended"

options = json.loads(os.environ[VARIABLE])
app = Celery("start", broker=options["broker_url"], backend=options["result_backend"])
app.conf.update(
    task_default_queue=options["queue"],
    task_time_limit=60,
    broker_transport_options={"visibility_timeout": 300},
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=1,
)
task_options: dict[str, Any] = {"name": NOTE}
if options["imports"] == "boto3":
    import boto3  # noqa: F401 - for what its import takes
elif options["imports"] == "idempotent_tasks":
    from idempotent_tasks import DynamoDBStore, IdempotentTask

    app.conf.idempotency_store = DynamoDBStore(
        options["table"], region=options["region"], endpoint_url=options["endpoint"]
    )
    app.conf.idempotency_checks = options["checks"]
    task_options["base"] = IdempotentTask


@app.task(**task_options)
def note() -> None:
    """Do nothing."""


def _mark(name: str) -> None:
    """Write down this moment, and what this process has spent, in seconds."""
    path = Path(options["directory"], name)
    written = path.with_suffix(".part")
    written.write_text(json.dumps([time.monotonic(), time.process_time()]), "utf-8")
    written.rename(path)


@signals.worker_ready.connect
def say_ready(**_: Any) -> None:
    """Tell that this worker consumes."""
    _mark(READY)


@signals.task_success.connect
def say_ended(**_: Any) -> None:
    """Tell that its task has ended."""
    _mark(ENDED)
