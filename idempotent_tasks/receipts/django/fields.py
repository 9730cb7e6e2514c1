"""Fields of the table of receipts, for its migrations, which may be read before the app is installed."""

from typing import Any

from django.db import models

from idempotent_tasks.receipts.table import KEY_CHARACTERS

__all__ = ["KeyText"]


class KeyText(models.TextField):
    """A text of a primary key: compared byte by byte, which MariaDB's usual collations do not."""

    def db_type(self, connection: Any) -> str | None:
        """Return the column's type; in MariaDB one that fits into an index with the other part of the key."""
        if connection.vendor != "mysql":
            return super().db_type(connection)
        return f"varchar({KEY_CHARACTERS[self.column]}) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
