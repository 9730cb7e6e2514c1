"""Kills at random over several ways to guard a Celery task, and the checker of the history that it leaves."""
