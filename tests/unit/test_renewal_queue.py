"""The queue of renewals: by due time, and without those of runs that are over."""

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from idempotent_tasks.core.lease import MOST_ENDED, RenewalQueue


@dataclass(eq=False)
class Entry:
    """Comes due."""

    due: float
    done: bool = False


def filled(*entries: Entry) -> Any:
    """Return a queue with these entries, which stand in for renewals."""
    queue: Any = RenewalQueue()
    for entry in entries:
        queue.add(entry)
    return queue


def taken(queue: Any, now: float) -> list[Entry]:
    """Take all that is due."""
    entries = []
    while (entry := queue.take(now)) is not None:
        entries.append(entry)
    return entries


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())), st.integers(0, 9))
def test_all_that_is_due_comes_the_longest_due_first(numbers: list[tuple[int, bool]], now: int) -> None:
    """Neither what is not due, nor what is over, is ever taken; the rest waits on."""
    entries = [Entry(*each) for each in numbers]
    queue = filled(*entries)
    due = taken(queue, now)
    alive = [entry for entry in entries if not entry.done]
    assert set(due) == {entry for entry in alive if entry.due <= now}
    assert [entry.due for entry in due] == sorted(entry.due for entry in due)
    later = [entry.due for entry in alive if entry.due > now]
    following = queue.next()
    assert (following.due if following else None) == (min(later) if later else None)


def test_only_the_next_of_all_is_told_as_such() -> None:
    """Whoever sleeps until the next one needs to know of no other."""
    queue: Any = RenewalQueue()
    assert [queue.add(Entry(due)) for due in (5, 7, 5, 3)] == [True, False, False, True]


def test_entries_that_are_over_are_swept_out() -> None:
    """A process that runs many short bodies keeps none of them in memory until its claim would come due."""
    lasting = Entry(60)
    queue = filled(lasting)
    for _ in range(10 * MOST_ENDED):
        entry = Entry(60)
        queue.add(entry)
        entry.done = True
        queue.sweep()
        assert len(queue) <= MOST_ENDED + 2
    assert taken(queue, 60) == [lasting]
