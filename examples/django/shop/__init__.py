"""A minimal Django project whose tasks are guarded."""

from shop.celery import app

__all__ = ["app"]
