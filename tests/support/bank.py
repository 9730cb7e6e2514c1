"""Receipts that a worker's tasks name as ``tests.support.bank:receipts``, in the database of ``TESTS_BANK_URL``."""

import os

from sqlalchemy import create_engine

from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts

__all__ = ["receipts"]

receipts = SQLAlchemyReceipts(create_engine(os.environ["TESTS_BANK_URL"]))
