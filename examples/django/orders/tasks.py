"""The tasks of an order. Its rows have a receipt in their transaction, or a unique key: none is there twice."""

import os
import time
from typing import Any

from celery import chain, chord, shared_task
from celery.canvas import Signature
from celery.contrib.django.task import DjangoTask
from django.core.mail import send_mail
from django.db.models import F
from django.utils import timezone

from idempotent_tasks import Idempotency, IdempotentTask
from idempotent_tasks.receipts.django import DjangoReceipts
from orders import processor
from orders.models import Order, Parcel, Payment

RECEIPTS = DjangoReceipts(using="default")
#: Seconds that the mail server takes to accept a mail.
MAIL_SECONDS = float(os.environ.get("MAIL_SECONDS", "0"))


class GuardedTask(IdempotentTask, DjangoTask):
    """A guarded task with ``delay_on_commit`` of Celery's Django integration."""

    abstract = True


@shared_task(base=GuardedTask, bind=True, idempotency=Idempotency(receipts=RECEIPTS))
def record_payment(self: Any, order_id: int, cents: int) -> int:
    """Add a payment to what is paid of an order; the webhook names the key. Returns the id of the payment."""
    # In the transaction of the receipt: both rows, or neither.
    payment = Payment.objects.create(order_id=order_id, cents=cents)
    Order.objects.filter(pk=order_id).update(paid_cents=F("paid_cents") + cents)
    self.idempotency.after_commit(thank.si(payment.pk))
    return payment.pk


@shared_task(
    base=GuardedTask,
    bind=True,
    idempotency=Idempotency(key="reference", validate="cents", downstream="['collect', reference]"),
)
def collect(self: Any, reference: str, cents: int) -> int:
    """Charge the card of an order, and add what it has paid. Returns the id of the payment."""
    step = self.idempotency.step
    # A step of its own, so that no row is locked while the processor is asked.  The key is the same in every run.
    step("charge", processor.charge, reference, cents, idempotency_key=self.idempotency.step_key("charge"))
    payment: int = step.options(receipts=RECEIPTS)("add payment", add_payment, reference, cents)
    return payment


def add_payment(reference: str, cents: int) -> int:
    """Add what was charged to what is paid of an order, in the transaction of the step's receipt."""
    order = Order.objects.get(reference=reference)
    payment = Payment.objects.create(order=order, cents=cents)
    Order.objects.filter(pk=order.pk).update(paid_cents=F("paid_cents") + cents)
    collect.idempotency.after_commit(thank.si(payment.pk))
    return payment.pk


@shared_task(base=GuardedTask)
def thank(payment_id: int) -> None:
    """Mail that a payment has arrived."""
    payment = Payment.objects.select_related("order").get(pk=payment_id)
    send_mail(f"Thank you for {payment}", f"Order {payment.order}", "shop@localhost", [payment.order.email])


@shared_task(base=GuardedTask, bind=True, idempotency=Idempotency(key="[order_id, item]"))
def pack(self: Any, order_id: int, item: str) -> int:
    """Pack an item. Returns the id of the parcel."""
    parcel, _ = Parcel.objects.get_or_create(
        idempotency_key=self.idempotency.key, defaults={"order_id": order_id, "item": item}
    )
    return parcel.pk


@shared_task(base=GuardedTask, idempotency=Idempotency(key="order_id"))
def ship(order_id: int) -> None:
    """Ship the parcels of an order together."""
    Order.objects.filter(pk=order_id, shipped_at=None).update(shipped_at=timezone.now())


@shared_task(base=GuardedTask, bind=True, idempotency=Idempotency(key="order_id"))
def confirm(self: Any, order_id: int) -> str:
    """Mail the confirmation of an order: no row, so nothing but the guard prevents a second one."""
    order = Order.objects.get(pk=order_id)
    time.sleep(MAIL_SECONDS)
    send_mail(f"Your order {order}", f"Thank you! ({self.idempotency.key})", "shop@localhost", [order.email])
    order.confirmed_at = timezone.now()
    order.save(update_fields=["confirmed_at"])
    return order.reference


def fulfilment(order: Order, items: list[str]) -> Signature:
    """Return the canvas of an order: pack each item, ship all parcels together, then mail the confirmation."""
    parcels = [pack.si(order.pk, item) for item in items]
    return chain(chord(parcels, ship.si(order.pk)), confirm.si(order.pk))
