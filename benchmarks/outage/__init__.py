"""How often a body runs twice when DynamoDB is away for longer than its claim lives."""
