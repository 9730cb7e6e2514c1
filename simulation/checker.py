"""The promise, held against a history: invariants, each with its precondition, and how many histories meet it."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from simulation.faults import NETWORK_FAULTS
from simulation.history import Entry, History
from simulation.scheduler import START

__all__ = ["INVARIANTS", "Violation", "check"]

#: Seconds by which a process's idea of DynamoDB's time may be off: a ``Date`` has whole seconds, an answer takes time.
CLOCK_SECONDS: Final = 2.5
#: The states of a task that nothing follows.
FINAL: Final = ("SUCCESS", "FAILURE")


#: What may keep a claim from being renewed or released in time.
DISTURBANCES: Final = frozenset(
    {*NETWORK_FAULTS, "store-away", "child-stopped", "child-killed", "worker-killed", "body-died", "hard-limit"}
)
#: Seconds within which an undisturbed run releases its key when its body has failed.
RELEASE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant."""

    invariant: str
    at: float
    what: str


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a body."""

    began: Entry
    #: When it was over, or its process ended; ``math.inf`` if neither has happened.
    over_at: float

    @property
    def key(self) -> str:
        """The key that its claim excludes others from: its lock's, if it has one."""
        return str(self.began.details["lock"] or self.began.details["key"])

    @property
    def owner(self) -> str:
        """The owner token of its claim."""
        return str(self.began.details["owner"])


class _Facts:
    """A history, sorted by what the invariants ask for."""

    def __init__(self, history: History) -> None:
        self.history = history
        ends = {entry.details["run"]: entry.at for entry in history.of("over", "stopped")}
        self.runs = [
            _Run(entry, ends.get(entry.details["run"], math.inf))
            for entry in history.of("began")
            if entry.details["owner"] is not None
        ]
        #: By key: the items that were written, in order.
        self.items: dict[str, list[Entry]] = defaultdict(list)
        for entry in history.of("written"):
            self.items[entry.details["key"]].append(entry)
        #: The tasks of which at least one publish was taken.
        self.is_undisturbed = DISTURBANCES.isdisjoint(history.counts)
        self.published = {entry.details["id"]: entry for entry in history.of("published")}

    def released_at(self, run: _Run) -> float:
        """Return when a run was over, or had handed its key over to its retry."""
        own = (entry for entry in self.items[run.key] if entry.details["by"] == run.began.details["process"])
        given = (entry.at for entry in own if entry.at >= run.began.at and "owner" not in (entry.details["item"] or {}))
        return min(next(given, run.over_at), run.over_at)

    def item_at(self, key: str, at: float) -> dict[str, Any]:
        """Return the item of a key as of a time."""
        before = [entry for entry in self.items[key] if entry.at <= at]
        return (before[-1].details["item"] or {}) if before else {}

    def result(self, task_id: str) -> dict[str, Any]:
        """Return what the result backend has for a task."""
        stored = self.history.results.get(f"celery-task-meta-{task_id}")
        return {} if stored is None else json.loads(stored)


def _text(item: dict[str, Any], name: str) -> str | None:
    return next(iter(item[name].values())) if name in item else None


def _holder(entry: Entry) -> str | None:
    """Return the owner of the claim that a write leaves, if it leaves one."""
    item = entry.details["item"] or {}
    return _text(item, "owner") if _text(item, "status") == "INPROGRESS" else None


def _until(item: dict[str, Any]) -> float:
    """Return when a claim expires, in seconds of the history."""
    return int(_text(item, "in_progress_expiration") or 0) / 1000 - START


def _one_run(facts: _Facts) -> Iterator[Violation]:
    """While a claim is alive, no other run of its key begins."""
    for number, later in enumerate(facts.runs):
        for earlier in facts.runs[:number]:
            if earlier.key != later.key or earlier.over_at <= later.began.at or earlier.owner == later.owner:
                continue
            written = [entry for entry in facts.items[earlier.key] if entry.at <= later.began.at]
            for last, taken in zip_longest(written, written[1:]):
                if _holder(last) != earlier.owner:
                    continue
                if taken is None and _until(last.details["item"]) > later.began.at + CLOCK_SECONDS:
                    what = f"run {later.began.details['run']} began beside a living claim"
                    yield Violation("one run", later.began.at, what)
                elif taken is not None and _holder(taken) != earlier.owner and not _is_over(earlier, last, taken):
                    what = f"the claim of run {earlier.began.details['run']} was taken early"
                    yield Violation("one run", taken.at, what)


def _is_over(run: _Run, last: Entry, taken: Entry) -> bool:
    """Return whether a running run's claim had expired when it was taken, or was given up by the run itself."""
    by_itself = taken.details["by"] == run.began.details["process"]
    return by_itself or _until(last.details["item"]) <= taken.at + CLOCK_SECONDS


def _undisturbed(facts: _Facts) -> Iterator[Violation]:
    """Where nothing keeps claims from being renewed and released, no two runs of a key overlap, and none blocks it."""
    committed = {entry.details["fence"] for entry in facts.history.of("Committed")}
    for number, run in enumerate(facts.runs):
        for earlier in facts.runs[:number]:
            if _subject(earlier) == _subject(run) and facts.released_at(earlier) > run.began.at:
                yield Violation("undisturbed", run.began.at, f"run {run.began.details['run']} overlaps with another")
        item = facts.item_at(run.key, run.over_at + RELEASE_SECONDS)
        if run.began.details["fence"] not in committed and _text(item, "owner") == run.owner:
            yield Violation("undisturbed", run.over_at, f"run {run.began.details['run']} did not release its key")


def _subject(run: _Run) -> str:
    """Return what a run must not share with another at the same time: its order, or its task id."""
    details = run.began.details
    return str(details["id"] if details["task"] == "own" else details["order"])


def _live_claim(facts: _Facts) -> Iterator[Violation]:
    """A body begins only under a claim that is its own and has not expired."""
    for run in facts.runs:
        item = facts.item_at(run.key, run.began.at)
        is_own = _text(item, "owner") == run.owner and _text(item, "status") == "INPROGRESS"
        if not is_own or _until(item) < run.began.at - CLOCK_SECONDS:
            yield Violation("live claim", run.began.at, f"run {run.began.details['run']} began without a claim")


def _one_outcome(facts: _Facts) -> Iterator[Violation]:
    """The first outcome of a key stays; nobody claims the key again, or writes another one."""
    for key, written in facts.items.items():
        first = None
        for entry in written:
            item = entry.details["item"] or {}
            outcome = None if _text(item, "status") == "INPROGRESS" else (_text(item, "status"), _text(item, "data"))
            if first is not None and outcome != first:
                yield Violation("one outcome", entry.at, f"the outcome of {key} was replaced")
                break
            first = first or outcome


def _one_result(facts: _Facts) -> Iterator[Violation]:
    """All tasks of a key that succeed have one result, the outcome on its record."""
    at = facts.history.entries[-1].at
    unrecorded = {entry.details["key"] for entry in facts.history.of("Unrecorded")}
    results: dict[str, set[str]] = defaultdict(set)
    for task_id, key in _keys(facts).items():
        result = facts.result(task_id)
        if result.get("status") == "SUCCESS" and key not in unrecorded:
            results[key].add(json.dumps(result["result"]))
    for key, found in results.items():
        item = facts.history.items.get(key, {})
        outcome = {_text(item, "data")} if _text(item, "status") == "COMPLETED" else found
        if len(found) > 1 or found != outcome:
            yield Violation("one result", at, f"the tasks of {key} have other results than its record")


def _keys(facts: _Facts) -> dict[str, str]:
    """Return the key of each task by its id, as the library's events name it."""
    kinds = ("Claimed", "Replayed", "Committed", "Deferred")
    return {entry.details["task_id"]: entry.details["key"] for entry in facts.history.of(*kinds)}


def _nothing_lost(facts: _Facts) -> Iterator[Violation]:
    """Every task that was published ends, given that faults stop."""
    at = facts.history.entries[-1].at
    if not facts.history.ended:
        yield Violation("nothing lost", at, "messages are still on their way")
    for task_id in facts.published:
        if facts.result(task_id).get("status") not in FINAL:
            yield Violation("nothing lost", at, f"{task_id} has no result")


def _fences(facts: _Facts) -> Iterator[Violation]:
    """Each claim of a key has a larger fence than those before it."""
    for key, written in facts.items.items():
        fence, before = 0, None
        for entry in written:
            owner = _holder(entry)
            if owner is not None:
                new_fence = int(_text(entry.details["item"], "fence") or 0)
                if new_fence < fence or (new_fence == fence and owner != before):
                    yield Violation("fences", entry.at, f"{key} was claimed with fence {new_fence} after {fence}")
                fence = max(fence, new_fence)
            before = owner


def _continuation(facts: _Facts) -> Iterator[Violation]:
    """What follows a task that succeeded is sent at least once."""
    followed = {entry.details["of"] for entry in facts.history.of("followed")}
    for task_id, entry in facts.published.items():
        if entry.details["link"] and facts.result(task_id).get("status") == "SUCCESS" and task_id not in followed:
            yield Violation("continuation", facts.history.entries[-1].at, f"what follows {task_id} was never sent")


def _merged(facts: _Facts) -> Iterator[Violation]:
    """A message is dropped as a duplicate only where another one of its task lives."""
    for entry in facts.history.of("Merged"):
        if not entry.details["others"]:
            yield Violation("merged", entry.at, f"the last message of {entry.details['task_id']} was dropped")


#: By name: what finds its violations, and the precondition that a history must meet for it to say anything.
INVARIANTS: Final[dict[str, tuple[Callable[[_Facts], Iterator[Violation]], Callable[[_Facts], bool]]]] = {
    "one run": (_one_run, lambda facts: len(facts.runs) > 1),
    "undisturbed": (_undisturbed, lambda facts: facts.is_undisturbed and len(facts.runs) > 1),
    "live claim": (_live_claim, lambda facts: bool(facts.runs)),
    "one outcome": (_one_outcome, lambda facts: bool(facts.history.of("Committed"))),
    "one result": (_one_result, lambda facts: bool(facts.history.of("Committed", "Replayed"))),
    "nothing lost": (_nothing_lost, lambda facts: bool(facts.published)),
    "fences": (_fences, lambda facts: any(len(written) > 1 for written in facts.items.values())),
    "continuation": (_continuation, lambda facts: any(entry.details["link"] for entry in facts.published.values())),
    "merged": (_merged, lambda facts: bool(facts.history.of("Merged"))),
}


def check(history: History, met: Counter[str] | None = None) -> list[Violation]:
    """Return what a history violates; count in ``met`` the invariants whose precondition it meets."""
    facts, found = _Facts(history), list[Violation]()
    for name, (violations, applies) in INVARIANTS.items():
        if applies(facts):
            if met is not None:
                met[name] += 1
            found += violations(facts)
    return sorted(found, key=lambda violation: violation.at)
