"""Settings of Django, Celery and idempotent_tasks."""

import os
from pathlib import Path
from typing import Any

BASE = Path(__file__).parents[1]

SECRET_KEY = "only for this example"  # noqa: S105
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
INSTALLED_APPS = ["idempotent_tasks.receipts.django", "orders"]
ROOT_URLCONF = "shop.urls"
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

POSTGRESQL = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ.get("PGDATABASE"),
    # Ends the transaction of a worker that is frozen or gone, for whose receipt others wait.
    "OPTIONS": {"options": "-c idle_in_transaction_session_timeout=60s"},
}
SQLITE: dict[str, Any] = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": os.environ.get("SQLITE", BASE / "db.sqlite3"),
    "OPTIONS": {"timeout": 30, "transaction_mode": "IMMEDIATE"},
    # A file, which the worker of the tests can open too.
    "TEST": {"NAME": BASE / "test.sqlite3"},
}
#: PostgreSQL where PGDATABASE names a database; its driver reads PGHOST, PGPORT, PGUSER and PGPASSWORD by itself.
DATABASES = {"default": POSTGRESQL if POSTGRESQL["NAME"] else SQLITE}

#: Each mail is written as a file to this folder.
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = os.environ.get("MAILS", BASE / "mails")
#: The accounts of the card processor that this example brings.
PROCESSOR_BOOKS = os.environ.get("PROCESSOR_BOOKS", BASE / "processor.sqlite3")

CELERY_BROKER_URL = os.environ.get("BROKER_URL", "redis://localhost:6379/0")
CELERY_RESULT_BACKEND = os.environ.get("RESULT_URL", "redis://localhost:6379/1")
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("QUEUE", "shop")
CELERY_TASK_TIME_LIMIT = 30
#: Seconds after which Redis delivers again what a killed worker had: more than any task takes, less than people wait.
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 60}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1

CELERY_IDEMPOTENCY_STORE = os.environ.get("STORE_URL", "dynamodb://local:local@localhost:8000/shop")
CELERY_IDEMPOTENCY_EXPIRES = 86_400
