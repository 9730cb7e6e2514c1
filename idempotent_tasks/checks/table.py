"""Checks of the store: the table, its permissions, this machine's clock."""

from collections.abc import Iterator

from idempotent_tasks.checks.surroundings import Surroundings
from idempotent_tasks.findings import Finding
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb_probe import probe

__all__ = ["check_table"]


def check_table(found: Surroundings) -> Iterator[Finding]:
    """Find what keeps a DynamoDB store from its table; asks DynamoDB (`idempotent_tasks.stores.dynamodb_probe`)."""
    store = found.settings.store
    # A ready-made client must not be used before a worker forks.
    if isinstance(store, DynamoDBStore) and store.verifiable:
        for problem in probe(store.connection, store.table, store.layout):
            yield Finding(code=problem.code, what=problem.what, remedy=problem.remedy)
