"""Orders, and the effects of tasks on them."""

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


class Parcel(models.Model):
    """An item of an order, packed: a row with the key of its task, which the database keeps unique."""

    idempotency_key = models.TextField(unique=True)
    order = models.ForeignKey(Order, models.CASCADE)
    item = models.CharField(max_length=40)

    def __str__(self) -> str:
        """Return the item."""
        return self.item


class Payment(models.Model):
    """A payment, which is part of the order's `paid_cents`; that it is there once is due to its task's receipt."""

    order = models.ForeignKey(Order, models.CASCADE)
    cents = models.IntegerField()

    def __str__(self) -> str:
        """Return the amount."""
        return f"{self.cents} cents"
