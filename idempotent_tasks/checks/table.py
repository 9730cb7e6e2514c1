"""Checks of the store: the table, its permissions, this machine's clock."""

from collections.abc import Iterator

from idempotent_tasks.checks.context import Surroundings
from idempotent_tasks.checks.dynamodb import probe
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.stores.dynamodb import DynamoDBStore

__all__ = ["check_table"]


def check_table(found: Surroundings) -> Iterator[Finding]:
    """Find what keeps a DynamoDB store from its table; asks DynamoDB (`idempotent_tasks.checks.dynamodb`)."""
    store = found.settings.store
    # A ready-made client must not be used before a worker forks.
    if isinstance(store, DynamoDBStore) and store.verifiable:
        for problem in probe(store.connection, store.table, store.layout):
            yield Finding(code=problem.code, what=problem.what, remedy=problem.remedy)
