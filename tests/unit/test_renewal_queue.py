"""The queue of what is to be renewed: by due time, then by urgency, and without what is over."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from idempotent_tasks.renewals import MOST_OVER, Renewals


@dataclass(eq=False)
class Entry:
    """Comes due, and is more or less urgent then."""

    due: float
    urgency: float = 0.0
    done: bool = False


def filled(*entries: Entry) -> Renewals[Entry]:
    """Return a queue with these entries."""
    renewals = Renewals[Entry]()
    for entry in entries:
        renewals.add(entry)
    return renewals


def taken(renewals: Renewals[Entry], now: float) -> list[Entry]:
    """Take all that is due."""
    entries = []
    while (entry := renewals.take(now)) is not None:
        entries.append(entry)
    return entries


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans())), st.integers(0, 9))
def test_all_that_is_due_comes_the_most_urgent_first(numbers: list[tuple[int, int, bool]], now: int) -> None:
    """Neither what is not due, nor what is over, is ever taken; the rest waits on."""
    entries = [Entry(*each) for each in numbers]
    renewals = filled(*entries)
    due = taken(renewals, now)
    alive = [entry for entry in entries if not entry.done]
    assert set(due) == {entry for entry in alive if entry.due <= now}
    assert [entry.urgency for entry in due] == sorted(entry.urgency for entry in due)
    later = [entry.due for entry in alive if entry.due > now]
    assert renewals.next_due() == (min(later) if later else None)


def test_only_the_next_of_all_is_told_as_such() -> None:
    """Whoever sleeps until the next one needs to know of no other."""
    renewals = Renewals[Entry]()
    assert [renewals.add(Entry(due)) for due in (5, 7, 5, 3)] == [True, False, False, True]


def test_what_became_due_first_is_the_oldest_until_it_has_another_time() -> None:
    """Even in the hands of who renews it, and however urgent others are."""
    first, second, third = Entry(1, urgency=9), Entry(2, urgency=1), Entry(3)
    renewals = filled(first, second, third)
    assert renewals.oldest_due() is None
    assert renewals.take(2) is second
    assert renewals.oldest_due() is first
    assert renewals.take(2) is first
    assert renewals.oldest_due() is first
    first.due = 11
    assert renewals.oldest_due() is second
    second.done = True
    assert renewals.oldest_due() is None


def test_entries_that_are_over_are_swept_out() -> None:
    """A process that runs many short bodies keeps none of them in memory until its claim would come due."""
    renewals, lasting = Renewals[Entry](), Entry(60)
    renewals.add(lasting)
    for _ in range(10 * MOST_OVER):
        entry = Entry(60)
        renewals.add(entry)
        entry.done = True
        renewals.sweep()
        assert len(renewals) <= MOST_OVER + 2
    assert taken(renewals, 60) == [lasting]
