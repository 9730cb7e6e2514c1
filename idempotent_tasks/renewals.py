"""What is to be renewed next: a queue for the threads of one process."""

import heapq
import threading
from collections import deque
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["Renewals"]

#: So many entries that are over stay in the queue before it is swept.
MOST_OVER: Final = 64


class Renewable(Protocol):
    """Something that comes due again and again until it is over."""

    #: Epoch seconds at which it is to be renewed; changed only by who has taken it.
    due: float
    #: Whether it is over.
    done: bool

    @property
    def urgency(self) -> float:
        """Of those that are due, the one with the smallest comes first."""
        ...


T = TypeVar("T", bound=Renewable)


class Renewals(Generic[T]):
    """Entries by the time at which they come due; of those that are, the most urgent comes first.

    Every time is in epoch seconds by one clock.  An entry costs the logarithm of their number, whichever is taken.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Breaks ties, because entries cannot be compared.
        self._numbers = count()
        #: Heaps, of what is not due and of what is.
        self._waiting: list[tuple[float, int, T]] = []
        self._urgent: list[tuple[float, int, T]] = []
        #: What came due, oldest first, with the time at which it did.
        self._came_due: deque[tuple[float, T]] = deque()
        self._over = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting) + len(self._urgent)

    def add(self, entry: T) -> bool:
        """Let an entry wait until it is due, and return whether it is the next of all that wait."""
        with self._lock:
            heapq.heappush(self._waiting, (entry.due, next(self._numbers), entry))
            return self._waiting[0][-1] is entry

    def take(self, now: float) -> T | None:
        """Take the most urgent entry that is due, for whoever asks alone; None where none is."""
        with self._lock:
            while self._waiting and self._waiting[0][0] <= now:
                due, number, entry = heapq.heappop(self._waiting)
                heapq.heappush(self._urgent, (entry.urgency, number, entry))
                self._came_due.append((due, entry))
            while self._urgent:
                *_, entry = heapq.heappop(self._urgent)
                if not entry.done:
                    return entry
            return None

    def sweep(self) -> None:
        """Note that an entry is over, and forget such ones where they are many."""
        with self._lock:
            self._over += 1
            if self._over <= max(MOST_OVER, (len(self._waiting) + len(self._urgent)) // 2):
                return
            for heap in (self._waiting, self._urgent):
                heap[:] = [item for item in heap if not item[-1].done]
                heapq.heapify(heap)
            self._over = 0

    def next_due(self) -> float | None:
        """Return when the next entry comes due; None where none waits."""
        with self._lock:
            while self._waiting and self._waiting[0][-1].done:
                heapq.heappop(self._waiting)
            return self._waiting[0][0] if self._waiting else None

    def oldest_due(self) -> T | None:
        """Return the entry that has been due for longest and is not renewed yet; None where none is due."""
        with self._lock:
            while self._came_due:
                due, entry = self._came_due[0]
                if not entry.done and entry.due == due:
                    return entry
                self._came_due.popleft()
            return None
