"""A simulated day of a fleet: what many duplicates of few keys do to a partition of DynamoDB, in virtual time."""
