"""``python manage.py create_records_table``."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from idempotent_tasks import DynamoDBStore


class Command(BaseCommand):
    """Creates the table of the idempotency records; it may be there already."""

    help = __doc__

    def handle(self, **_: Any) -> None:
        """Create the table."""
        DynamoDBStore.from_url(settings.CELERY_IDEMPOTENCY_STORE).create_table()
