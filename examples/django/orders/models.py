"""The model of an order."""

from django.db import models


class Order(models.Model):
    """An order, which the customer identifies by its reference."""

    reference = models.CharField(max_length=40, unique=True)
    email = models.EmailField()
    confirmed_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        """Return the reference."""
        return self.reference
