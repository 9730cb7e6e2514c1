"""Tests of the stores: one contract for all of them, then what only DynamoDB can get wrong."""
