"""The side of Celery that one delivery sees: its handler, its deferral, what follows it, and how it was published."""
