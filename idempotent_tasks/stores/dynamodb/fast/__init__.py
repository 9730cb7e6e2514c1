"""The fast path to DynamoDB: requests that bypass boto3, only where they are provably what it would send."""
