"""Celery's side of one delivery: handler, deferral, callbacks, publishing, result backend."""
