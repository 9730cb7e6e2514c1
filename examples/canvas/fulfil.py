"""The way of an order to the customer: a chain of guarded steps around a chord."""

import sys

from celery import chain, chord
from tasks import pack, reserve, ship, tell

ITEMS = ("book", "lamp", "sofa")


def main(order: str) -> None:
    """Publish all the steps of an order, and print the result of the last."""
    packing = chord([pack.si(order, item) for item in ITEMS], ship.s(order))
    print(chain(reserve.s(order), packing, tell.s()).apply_async().get(timeout=90))


if __name__ == "__main__":
    main(sys.argv[1])
