"""Records in a DynamoDB table."""

from idempotent_tasks.stores.dynamodb.store import DynamoDBStore

__all__ = ["DynamoDBStore"]
