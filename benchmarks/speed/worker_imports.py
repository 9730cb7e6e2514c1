"""Imports what any worker that speaks to DynamoDB has imported, whoever guards its tasks."""

from importlib import import_module
from typing import Final

__all__ = ["MODULES"]

#: ``import celery`` alone loads next to nothing: what a worker runs on is loaded when it is first used.
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
