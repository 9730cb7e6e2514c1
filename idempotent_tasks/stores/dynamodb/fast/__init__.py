"""Requests that go past boto3, only where they are provably what boto3 would send."""
