"""Receipts in a database of a Django project: an app for ``INSTALLED_APPS``, and `DjangoReceipts`."""

from idempotent_tasks.receipts.django.transactions import DjangoReceipts

__all__ = ["DjangoReceipts"]
