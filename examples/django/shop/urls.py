"""The URLs of the project."""

from django.urls import path
from orders.views import charges, order, orders, payments

urlpatterns = [
    path("orders", orders),
    path("orders/<str:reference>", order),
    path("orders/<str:reference>/charges", charges),
    path("webhooks/payments", payments),
]
