"""Run counts, generations and retention of unresolved records, held against the claims and bodies of a history."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from idempotent_tasks.core.guard import HOLDER_ENDED
from simulation.history import Entry, History
from simulation.items import is_lock, is_parked, requested_at, text
from simulation.scheduler import CLOCK_SECONDS

__all__ = [
    "LONGEST_LEASE_SECONDS",
    "Grant",
    "RunCounts",
    "asked_twice",
    "counted_once",
    "generations",
    "is_claim",
    "is_free",
    "is_reserved",
    "kept",
    "numbers",
    "reruns",
]

#: Why somebody else releases a claim whose body may have begun; after any other reason it has not.
_MAY_HAVE_BEGUN: Final = frozenset(
    {"WorkerLostError", "TimeLimitExceeded", "Terminated", "SystemExit", "KeyboardInterrupt", HOLDER_ENDED}
)
#: No claim lives longer than this from its request, or from its renewal's.
LONGEST_LEASE_SECONDS: Final = 10.0


@dataclass(eq=False, slots=True)
class Grant:
    """A claim for a run, as the store has written it."""

    entry: Entry
    #: The run that began under it, if one did.
    began: Entry | None
    #: What has released it, if anything has.
    released: Entry | None = None
    #: From when on it is no run: it has parked its key instead, or a person has said that nothing was done.
    void_at: float = math.inf

    @property
    def owner(self) -> str | None:
        """The owner token of its claim."""
        return text(self.entry.item, "owner")

    @property
    def requested_at(self) -> int:
        """When it was requested by the clock of its process, in epoch milliseconds."""
        return int(text(self.entry.item, "claimed_at") or 0)


class RunCounts:
    """The claims of a history's keys, by their fresh starts.

    A key starts afresh where its record was missing, had an outcome or had expired.  That is read from the records
    that claims met, not from their generations.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        #: By key: what was written, in order.
        self.written: dict[str, list[Entry]] = defaultdict(list)
        for entry in history.of("written"):
            self.written[entry.details["key"]].append(entry)
        self._began = {(each.details["key"], each.details["grant"]): each for each in self._numbered()}
        #: By run: when its body said that it has done nothing.
        self._nothing_done = {each.details["run"]: each.at for each in reversed(history.of("nothing-done"))}
        #: One list for each fresh start of a key.
        self.starts = [start for key in self.written for start in self._starts_of(key) if not is_lock(key)]

    def _numbered(self) -> list[Entry]:
        return [entry for entry in self.history.of("began") if entry.details.get("grant")]

    def _starts_of(self, key: str) -> list[list[Grant]]:
        starts: list[list[Grant]] = [[]]
        for old, entry in _steps(self.written[key]):
            item = entry.item
            if is_claim(old, item):
                if is_fresh(old, item):
                    starts.append([])
                if not is_reserved(item):
                    began = self._began.get((key, int(text(item, "fence") or 0)))
                    starts[-1].append(Grant(entry, began))
            elif is_parked(item) and not is_parked(old):
                starts[-1][-1].void_at = entry.at
            elif is_parked(old) and is_free(item):
                for grant in starts[-1]:
                    grant.void_at = min(grant.void_at, entry.at)
            elif starts[-1] and is_free(item) and not (is_free(old) or is_reserved(old)):
                starts[-1][-1].released = entry
        return starts

    def pairs(self) -> Iterator[tuple[list[Grant], Grant]]:
        """Yield each claim under which a body began, with the claims of its start before it."""
        for start in self.starts:
            for place, grant in enumerate(start):
                if grant.began is not None:
                    yield start[:place], grant

    def counts(self, grant: Grant, at: float) -> bool:
        """Return whether a claim counts as a run at a later time: unless its body did not begin or did nothing."""
        released = grant.released
        if released is None or grant.void_at < at:
            return grant.void_at >= at
        item = released.item
        if grant.began is None:
            return self.is_released_by_operator(grant) or text(item, "error") in _MAY_HAVE_BEGUN
        details = grant.began.details
        said_at = self._nothing_done.get(details["run"], math.inf)
        # A crash keeps the attempt.
        is_own = released.details["by"] == details["process"] and text(item, "attempt") == "0"
        return not (is_own and said_at <= released.at)

    def is_released_by_operator(self, grant: Grant) -> bool:
        """Return whether an operator has released a claim, who cannot know whether its body has begun."""
        return grant.released is not None and grant.released.details["by"] == self.history.operator

    def left_unresolved(self, grants: list[Grant], at: float) -> list[Grant]:
        """Return the claims under which a body began that is a reason to call one at a later time a rerun."""
        return [each for each in grants if each.began is not None and self.counts(each, at)]


def _steps(written: list[Entry]) -> Iterator[tuple[dict[str, Any], Entry]]:
    """Yield each write of a key with the item that it met, empty where there was none."""
    old: dict[str, Any] = {}
    for entry in written:
        yield old, entry
        old = entry.item


def is_free(item: dict[str, Any]) -> bool:
    """Return whether a key has neither holder nor outcome."""
    return text(item, "status") == "INPROGRESS" and "owner" not in item


def is_reserved(item: dict[str, Any]) -> bool:
    """Return whether a record is a reservation."""
    return (text(item, "owner") or "").startswith("reserved for ")


def is_claim(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether a write has claimed a key."""
    names = ("owner", "fence")
    changed = [text(new, name) for name in names] != [text(old, name) for name in names] and not is_parked(new)
    return text(new, "status") == "INPROGRESS" and "owner" in new and changed


def is_fresh(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether a claim found no run of its key that has begun and left no outcome."""
    if text(old, "status") != "INPROGRESS":
        return True
    # As the claim's own condition, by its own clock.
    return int(text(old, "expiration") or 0) < int(text(new, "claimed_at") or 0) // 1000


def numbers(counts: RunCounts) -> Iterator[tuple[float, str]]:
    """A body's number is one more than that of the earlier runs that left no outcome."""
    for earlier, grant in counts.pairs():
        assert grant.began is not None
        details, expected = grant.began.details, 1 + sum(counts.counts(each, grant.entry.at) for each in earlier)
        if details["number"] != expected:
            yield grant.began.at, f"run {details['run']} has number {details['number']} instead of {expected}"


def reruns(counts: RunCounts) -> Iterator[tuple[float, str]]:
    """A body that follows one without an outcome is a rerun."""
    for earlier, grant in counts.pairs():
        assert grant.began is not None
        unresolved = counts.left_unresolved(earlier, grant.entry.at)
        if unresolved and not grant.began.details["rerun"]:
            yield grant.began.at, f"run {grant.began.details['run']} was told that nothing of its key was begun before"


def generations(counts: RunCounts) -> Iterator[tuple[float, str]]:
    """The generation grows where a key starts afresh, and nowhere else."""
    for key, written in counts.written.items():
        known, deleted_at = 0, -math.inf
        for old, entry in _steps(written):
            item = entry.item
            generation = int(text(item, "generation") or 0)
            deleted_at = deleted_at if item else entry.at
            if is_claim(old, item) and is_fresh(old, item):
                # Nothing but the clocks says that a key has had a record.
                least = known if old else known - CLOCK_SECONDS * 1000
                if (generation <= least or not generation) and requested_at(item) >= deleted_at:
                    yield entry.at, f"{key} starts afresh in generation {generation} after {known}"
            elif old and item and generation != int(text(old, "generation") or 0):
                yield entry.at, f"{key} has another generation without a fresh start"
            known = max(known, generation)


def counted_once(counts: RunCounts) -> Iterator[tuple[float, str]]:
    """No owner is granted a key twice from one fresh start: it would count two runs.

    But where the first grant was over before its owner had the answer and asked again: an operator has released it, or
    another claim has taken it over.  Whoever did so cannot know that no body had begun, and the record keeps the count.
    """
    for start in counts.starts:
        for place, grant in enumerate(start):
            same = [before for before in range(place) if start[before].owner == grant.owner]
            if not same or counts.is_released_by_operator(start[same[-1]]):
                continue
            # A copy of the first request has the first one's time, however late it comes.
            if all(grant.requested_at <= other.requested_at for other in start[same[-1] + 1 : place]):
                yield grant.entry.at, f"one request has counted two runs of {grant.entry.details['key']}"


def kept(counts: RunCounts) -> Iterator[tuple[float, str]]:
    """A record without an outcome is kept ``unresolved_for`` from the request of its last claim or renewal."""
    seconds = counts.history.unresolved_seconds or 0.0
    for key, written in counts.written.items():
        if is_lock(key):
            continue
        least = 0.0
        for old, entry in _steps(written):
            item = entry.item
            if text(item, "status") != "INPROGRESS":
                continue
            if is_claim(old, item):
                least = int(text(item, "claimed_at") or 0) / 1000 + seconds
            elif not is_free(item) and not is_reserved(item) and not is_parked(item):
                renewed_until = int(text(item, "in_progress_expiration") or 0) / 1000
                longest = LONGEST_LEASE_SECONDS + counts.history.settle_seconds
                least = max(least, renewed_until - longest + seconds)
            short = least - int(text(item, "expiration") or 0)
            if short > CLOCK_SECONDS:
                yield entry.at, f"the unresolved record of {key} is kept {short:.0f} s too briefly"


def asked_twice(history: History) -> bool:
    """Return whether one claim may have been requested twice."""
    asked = Counter((call.key, call.owner) for call in history.calls if call.method == "claim")
    return "doubled" in history.counts or any(count > 1 for count in asked.values())
