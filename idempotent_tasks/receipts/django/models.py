"""The table of receipts as a Django model, for migrations and the shell; tasks use its statements directly."""

from django.db import models

from idempotent_tasks.receipts.django.fields import KeyText
from idempotent_tasks.receipts.table import TABLE

__all__ = ["Receipt"]


class Receipt(models.Model):
    """One key's row: what its run in this database has ended with."""

    pk = models.CompositePrimaryKey("key", "step")
    key = KeyText()
    step = KeyText()
    generation = models.BigIntegerField()
    fence = models.BigIntegerField()
    task_id = models.TextField()
    expires_at = models.BigIntegerField(db_index=True)
    status = models.TextField(null=True)
    codec = models.TextField(null=True)
    text = models.TextField(null=True)
    data = models.BinaryField(null=True)
    error = models.TextField(null=True)
    continuation = models.TextField(null=True)
    following = models.TextField(null=True)
    inputs = models.TextField(null=True)

    class Meta:
        """Name the table."""

        db_table = TABLE

    def __str__(self) -> str:
        return f"{self.key} {self.step}".strip()
