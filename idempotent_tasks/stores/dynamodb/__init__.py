"""The DynamoDB store: records as items of one table, in the format of Powertools for AWS Lambda (Python)."""

from idempotent_tasks.stores.dynamodb.store import DynamoDBStore

__all__ = ["DynamoDBStore"]
