"""What a customer ordered."""

from django.db import models


class Order(models.Model):
    """An order, known to the customer by its reference."""

    reference = models.CharField(max_length=40, unique=True)
    email = models.EmailField()
    confirmed_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        """Return the reference."""
        return self.reference
