"""The HTTP views of the shop. What they publish, they publish when the transaction has committed."""

import json

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from orders.models import Order
from orders.tasks import collect, fulfilment, record_payment


@csrf_exempt
@require_POST
@transaction.atomic
def orders(request: HttpRequest) -> JsonResponse:
    """Store an order and publish its canvas; posting it again publishes the same canvas again."""
    placed, _ = Order.objects.get_or_create(
        reference=request.POST["reference"], defaults={"email": request.POST["email"]}
    )
    # Not at once: a fast worker would look for an order that is not committed yet, or never will be.
    transaction.on_commit(fulfilment(placed, request.POST.getlist("item")).delay)
    return JsonResponse({"reference": placed.reference}, status=202)


@csrf_exempt
@require_POST
@transaction.atomic
def payments(request: HttpRequest) -> JsonResponse:
    """Take an event of the payment provider, who sends it until it is answered; a real one's signature is verified."""
    event = json.loads(request.body)
    paid = get_object_or_404(Order, reference=event["order"])
    record_payment.apply_async_on_commit((paid.pk, event["cents"]), idempotency_key=event["id"])
    return JsonResponse({"event": event["id"]}, status=202)


@csrf_exempt
@require_POST
@transaction.atomic
def charges(request: HttpRequest, reference: str) -> JsonResponse:
    """Have the card of an order charged; posting it again charges nothing."""
    charged = get_object_or_404(Order, reference=reference)
    collect.delay_on_commit(charged.reference, int(request.POST["cents"]))
    return JsonResponse({"charged": charged.reference}, status=202)


@require_GET
def order(request: HttpRequest, reference: str) -> JsonResponse:
    """Return what has been done for an order."""
    found = get_object_or_404(Order, reference=reference)
    return JsonResponse(
        {
            "reference": reference,
            "parcels": found.parcel_set.count(),
            "shipped": found.shipped_at is not None,
            "confirmed": found.confirmed_at is not None,
            "paid_cents": found.paid_cents,
        }
    )
