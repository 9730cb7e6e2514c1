"""Measurements; see README.md. Never part of the wheel."""
