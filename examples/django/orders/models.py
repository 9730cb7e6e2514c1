"""Orders, and the effects of tasks on them: each a row with the key of the task, which the database keeps unique."""

from django.db import models


class Order(models.Model):
    """An order, which the customer identifies by its reference."""

    reference = models.CharField(max_length=40, unique=True)
    email = models.EmailField()
    paid_cents = models.IntegerField(default=0)
    shipped_at = models.DateTimeField(null=True)
    confirmed_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        """Return the reference."""
        return self.reference


class Effect(models.Model):
    """What a task did for an order: written in the transaction of what it did, once for a key."""

    idempotency_key = models.TextField(unique=True)
    order = models.ForeignKey(Order, models.CASCADE)

    class Meta:
        """No table of its own."""

        abstract = True

    def __str__(self) -> str:
        """Return the key."""
        return self.idempotency_key


class Parcel(Effect):
    """An item of an order, packed."""

    item = models.CharField(max_length=40)


class Payment(Effect):
    """A payment, which is part of the order's `paid_cents`."""

    cents = models.IntegerField()
