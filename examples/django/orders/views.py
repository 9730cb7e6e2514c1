"""The HTTP views of the shop."""

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from orders.models import Order
from orders.tasks import confirm


@csrf_exempt
@require_POST
@transaction.atomic
def orders(request: HttpRequest) -> JsonResponse:
    """Store an order and publish its confirmation; posting it again publishes the confirmation again."""
    placed, _ = Order.objects.get_or_create(
        reference=request.POST["reference"], defaults={"email": request.POST["email"]}
    )
    # Not delay(): a fast worker would look for an order that is not committed yet, or never will be.
    confirm.delay_on_commit(placed.pk)
    return JsonResponse({"reference": placed.reference}, status=202)


@require_GET
def order(request: HttpRequest, reference: str) -> JsonResponse:
    """Return whether an order is confirmed."""
    found = get_object_or_404(Order, reference=reference)
    return JsonResponse({"reference": reference, "confirmed": found.confirmed_at is not None})
