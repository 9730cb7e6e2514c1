"""The URLs of the project."""

from django.urls import path
from orders.views import order, orders, payments

urlpatterns = [path("orders", orders), path("orders/<str:reference>", order), path("webhooks/payments", payments)]
