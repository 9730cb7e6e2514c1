"""What a Celery worker imports, imported once in the server that workers are forked from: a third of the work of each.

Importing it also has the garbage collector overlook all of that: Celery collects garbage before it forks each process
of a pool (``celery.concurrency.asynpool``'s ``AsynPool._create_worker_process``).
"""

import gc
from contextlib import suppress
from importlib import import_module
from typing import Final

from tests.testbed.workers import cache_service_descriptions

__all__: list[str] = []

#: What every worker imports, most of it only as it starts.
MODULES: Final = (
    "billiard.popen_fork",
    "billiard.sharedctypes",
    "boto3",
    "botocore.session",
    "celery.__main__",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.app.trace",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.events.receiver",
    "celery.loaders.app",
    "celery.utils.debug",
    "celery.utils.static",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    # Of use where billiard finds it: its processes ask by it to die with their parent.
    "cffi.cparser",
    "encodings.idna",
    "idempotent_tasks",
    "kombu.mixins",
    "kombu.pidbox",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "urllib3",
)

for name in MODULES:
    with suppress(ImportError):
        import_module(name)
cache_service_descriptions()
gc.collect()
gc.freeze()
