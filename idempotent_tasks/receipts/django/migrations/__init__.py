"""Migrations of the table of receipts."""
