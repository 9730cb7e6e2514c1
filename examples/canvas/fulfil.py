"""Fulfil an order: a chain of guarded tasks with a chord in it."""

import sys

from celery import chain, chord
from tasks import pack, reserve, ship, tell

ITEMS = ("book", "lamp", "sofa")


def main(order: str) -> None:
    """Publish the chain for an order, and print the result of its last task."""
    packing = chord([pack.si(order, item) for item in ITEMS], ship.s(order))
    print(chain(reserve.s(order), packing, tell.s()).apply_async().get(timeout=90))


if __name__ == "__main__":
    main(sys.argv[1])
