"""Database migrations of the orders."""
