"""The protocol: claim, run, commit, replay.  No Celery app and no DynamoDB here."""
