"""The Django app, whose migration makes the table of receipts."""

from django.apps import AppConfig

__all__ = ["ReceiptsConfig"]


class ReceiptsConfig(AppConfig):
    """``"idempotent_tasks.receipts.django"`` in ``INSTALLED_APPS``."""

    name = "idempotent_tasks.receipts.django"
    label = "idempotency_receipts"
    verbose_name = "Receipts of idempotent tasks"
