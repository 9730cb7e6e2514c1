"""Receipts: rows in the user's own SQL database that commit together with the effect of a task's body.

`idempotent_tasks.receipts.django` and `idempotent_tasks.receipts.sqlalchemy` keep them; each needs its own package.
"""
