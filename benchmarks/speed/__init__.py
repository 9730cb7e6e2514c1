"""The speed command: what the guard costs, beside plain Celery and Powertools for AWS Lambda, in one run."""
