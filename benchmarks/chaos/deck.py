"""Random choices of which none stays away for long."""

import random
from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["Deck"]

T = TypeVar("T")


class Deck(Generic[T]):
    """Cards in a random order: each is dealt as often as it is there, then all are shuffled again.

    Unlike independent draws, so many deals as there are cards have seen every card.

    Args:
        rng: decides the order.
        cards: at least one.
    """

    def __init__(self, rng: random.Random, cards: Iterable[T]) -> None:
        self._rng = rng
        self._cards = tuple(cards)
        self._left: list[T] = []

    def deal(self) -> T:
        """Return the next card."""
        if not self._left:
            self._left = self._rng.sample(self._cards, len(self._cards))
        return self._left.pop()
