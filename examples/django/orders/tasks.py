"""The task that mails the confirmation of an order."""

import os
import time
from typing import Any

from celery import shared_task
from celery.contrib.django.task import DjangoTask
from django.core.mail import send_mail
from django.utils import timezone

from idempotent_tasks import Idempotency, IdempotentTask
from orders.models import Order

#: Seconds that the mail server takes to accept a mail.
MAIL_SECONDS = float(os.environ.get("MAIL_SECONDS", "0"))


class GuardedTask(IdempotentTask, DjangoTask):
    """A guarded task with ``delay_on_commit`` of Celery's Django integration."""

    abstract = True


@shared_task(base=GuardedTask, bind=True, idempotency=Idempotency(key="order_id"))
def confirm(self: Any, order_id: int) -> str:
    """Mail the confirmation of an order, once."""
    order = Order.objects.get(pk=order_id)
    time.sleep(MAIL_SECONDS)
    send_mail(f"Your order {order}", f"Thank you! ({self.idempotency.key})", "shop@localhost", [order.email])
    order.confirmed_at = timezone.now()
    order.save(update_fields=["confirmed_at"])
    return order.reference
