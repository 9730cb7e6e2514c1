"""A body's writes, held against a history: they take effect with the record's outcome, once, or not at all."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final

from idempotent_tasks.core.lease import RENEW_AFTER
from simulation.calls import Call
from simulation.history import Entry, History
from simulation.items import holder, text
from simulation.provider import SETTLE_SECONDS
from simulation.run_counts import RunCounts
from simulation.scheduler import START
from simulation.tasks import LEASE_SECONDS
from simulation.tills import run_of

__all__ = ["ATOMIC_INVARIANTS", "AtomicWrites"]

#: What a task fails with whose writes were refused, by DynamoDB or before they were sent.
REFUSALS: Final = ("AtomicWriteError", "ConfigurationError", "ResultEncodingError")
#: The tasks that fail where the store does not answer.
RAISING: Final = ("writes-raises",)
#: Seconds after which a claim of the longest lease is renewed, which settles too.
LONGEST_UNRENEWED: Final = (LEASE_SECONDS + SETTLE_SECONDS) * RENEW_AFTER

Found = Iterator[tuple[float, str]]


class AtomicWrites:
    """A history's transactions.

    Args:
        history: the history.
        counts: its claims.
        is_anew: returns whether the second of two writes of a key ends what its record said.
    """

    def __init__(self, history: History, counts: RunCounts, is_anew: Callable[[Entry, Entry], bool]) -> None:
        self.history = history
        self.counts = counts
        self.is_anew = is_anew
        #: By run: its begin, and the return of its writes, of which there is at least one.
        self.began = {each.details["run"]: each for each in history.of("began")}
        self.returned = {each.details["run"]: each for each in history.of("returns-writes") if each.details["writes"]}
        #: By transaction: what it has applied to the app's table, and what it has written to the record's.
        self.applied: dict[int, list[Entry]] = defaultdict(list)
        for entry in history.of("applied"):
            self.applied[entry.details["transaction"]].append(entry)
        #: By transaction: the record that it met, and what it has left.
        self.records: dict[int, tuple[dict[str, Any], Entry]] = {}
        for written in counts.written.values():
            for old, entry in zip([None, *written], written, strict=False):
                if "transaction" in entry.details:
                    self.records[entry.details["transaction"]] = ({} if old is None else old.item, entry)
        self.tries: dict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in history.calls:
            if call.method == "commit_with":
                self.tries[call.key, call.owner].append(call)

    def runs_of(self, transaction: int) -> set[int]:
        """Return the runs whose writes a transaction has applied: one."""
        return {run_of(each.item) for each in self.applied[transaction]}

    @property
    def effective(self) -> set[int]:
        """The runs whose writes have taken effect."""
        return {run for transaction in self.applied for run in self.runs_of(transaction)}

    def run_before(self, report: Entry) -> int | None:
        """Return the run of the delivery that reports, if it has one that returned writes."""
        about = {"process": report.details["process"], "id": report.details["id"]}
        delivered = max((e.at for e in self._delivered(about) if e.at < report.at), default=-math.inf)
        for run, entry in self.returned.items():
            is_own = about.items() <= self.began[run].details.items()
            if is_own and delivered < entry.at < report.at:
                return int(run)
        return None

    def _delivered(self, about: dict[str, Any]) -> list[Entry]:
        return [each for each in self.history.of("delivered") if about.items() <= each.details.items()]

    def reports(self, *statuses: str) -> Iterator[tuple[Entry, int]]:
        """Yield what deliveries report whose bodies returned writes, with their runs."""
        for entry in self.history.of("reported") if self.returned else ():
            if entry.details["status"] in statuses and (run := self.run_before(entry)) is not None:
                yield entry, run

    def owner_of(self, run: int) -> str:
        """Return the owner token of a run's claim."""
        return str(self.began[run].details["owner"])

    def record_at(self, run: int, at: float) -> dict[str, Any]:
        """Return the record of a run's key as of a time."""
        written = self.counts.written[self.began[run].details["key"]]
        return next((each.item for each in reversed(written) if each.at <= at), {})

    def tries_of(self, run: int) -> list[Call]:
        """Return the tries of a run's transaction."""
        return self.tries.get((self.began[run].details["key"], self.owner_of(run)), [])

    def unanswered(self) -> Iterator[tuple[Entry, int]]:
        """Yield what deliveries report whose last try got no answer."""
        for entry, run in self.reports("SUCCESS", "FAILURE"):
            tries = self.tries_of(run)
            if tries and tries[-1].answer is None:
                yield entry, run

    def met_another(self) -> Iterator[Entry]:
        """Yield the transactions that were refused because their claim was not held any more."""
        for entry in self.history.of("cancelled"):
            written = [each for each in self.counts.written[entry.details["key"]] if each.at <= entry.at]
            if not written or holder(written[-1].item) != entry.details["owner"]:
                yield entry

    def long_tries(self) -> Iterator[tuple[str, str, float, float]]:
        """Yield key, owner, begin and end of each transaction that was tried for some time, in epoch seconds.

        A run whose release is interrupted looks once more, by its transaction: it is none meanwhile.
        """
        for (key, owner), tries in self.tries.items():
            released = [each.called_at for each in self.history.calls if _releases(each, key, owner)]
            groups = defaultdict[int, list[Call]](list)
            for each in tries:
                groups[sum(at < each.called_at for at in released)].append(each)
            for group in groups.values():
                yield key, owner, group[0].called_at, group[-1].ended_at or group[-1].called_at


def _writes_once(writes: AtomicWrites) -> Found:
    """A key's writes take effect with its outcome, and once, but where its record begins anew."""
    last: dict[str, Entry] = {}
    unguarded: set[int] = set()
    for transaction, applied in writes.applied.items():
        runs = writes.runs_of(transaction)
        if all(writes.began[run].details["owner"] is None for run in runs):
            if runs & unguarded:
                yield applied[0].at, f"the writes of run {min(runs)} took effect again"
            unguarded |= runs
            continue
        if transaction not in writes.records:
            yield applied[0].at, "writes took effect without a record"
            continue
        _, record = writes.records[transaction]
        key = record.details["key"]
        if text(record.item, "status") != "COMPLETED":
            yield record.at, f"writes of {key} took effect without an outcome"
        if {writes.began[run].details["key"] for run in writes.runs_of(transaction)} != {key}:
            yield record.at, f"writes of another key took effect with the outcome of {key}"
        if key in last and not _is_anew_between(writes, last[key], record):
            yield record.at, f"writes of {key} took effect again"
        last[key] = record


def _is_anew_between(writes: AtomicWrites, first: Entry, last: Entry) -> bool:
    written = [each for each in writes.counts.written[first.details["key"]] if first.at <= each.at <= last.at]
    return any(writes.is_anew(*pair) for pair in pairwise(written))


def _outcome_has_writes(writes: AtomicWrites) -> Found:
    """The outcome of a run that returned writes has them, all of them."""
    runs = {(writes.began[run].details["key"], writes.owner_of(run)): run for run in writes.returned}
    for key, written in writes.counts.written.items():
        for old, entry in zip([None, *written], written, strict=False):
            run, outcome = runs.get((key, text(entry.item, "owner") or "")), text(entry.item, "status")
            was_outcome = old is not None and text(old.item, "status") == outcome
            if run is None or outcome != "COMPLETED" or was_outcome:
                continue
            applied = writes.applied.get(entry.details.get("transaction", 0), [])
            wanted, found = writes.returned[run].details["writes"], sum(run_of(each.item) == run for each in applied)
            if found != wanted:
                yield entry.at, f"the outcome of run {run} has {found} of {wanted} writes"


def _no_zombie(writes: AtomicWrites) -> Found:
    """Writes take effect only where the run that they are of has its key still."""
    for transaction, (old, entry) in writes.records.items():
        for run in writes.runs_of(transaction) if transaction in writes.applied else ():
            if holder(old) != writes.owner_of(run):
                yield entry.at, f"run {run} wrote, and did not have its key any more"


def _refused(writes: AtomicWrites) -> Found:
    """Of writes that were refused nothing takes effect, and their key is free before that is reported."""
    for entry, run in writes.reports("FAILURE"):
        if entry.details["error"] not in REFUSALS:
            continue
        if run in writes.effective:
            yield entry.at, f"the writes of run {run} were reported as refused, and took effect"
        if holder(writes.record_at(run, entry.at)) == writes.owner_of(run):
            yield entry.at, f"the writes of run {run} were reported as refused, and it has its key still"


def _reported(writes: AtomicWrites) -> Found:
    """What a delivery reports as its own run's result has its writes, unless its body has handed over to a retry."""
    handed_over = {each.details["id"] for each in writes.history.of("handed-over")}
    for entry, run in writes.reports("SUCCESS"):
        value = entry.details["value"]
        is_own = run == (value["run"] if isinstance(value, dict) else value)
        if is_own and run not in writes.effective and entry.details["id"] not in handed_over:
            yield entry.at, f"the result of run {run} was reported, and its writes took no effect"


def _unanswered(writes: AtomicWrites) -> Found:
    """Who has no answer to the last try reports nothing, but what the record says."""
    if writes.history.task in RAISING:
        return
    for entry, run in writes.unanswered():
        if text(writes.record_at(run, entry.at), "status") != "COMPLETED":
            yield entry.at, f"run {run} has no answer, and its delivery reports {entry.details['status']}"


def _releases(call: Call, key: str, owner: str) -> bool:
    return (call.method, call.key, call.owner) == ("release", key, owner)


def _no_renewal(writes: AtomicWrites) -> Found:
    """A claim is not renewed while its own transaction is under way."""
    for key, owner, begun, ended in writes.long_tries():
        for call in writes.history.calls:
            if (call.method, call.key, call.owner) == ("renew", key, owner) and begun < call.called_at < ended:
                yield call.called_at - START, f"{key} was renewed while its transaction was under way"


def _is_tried_longer(writes: AtomicWrites) -> bool:
    """Return whether a transaction took so long that a renewal would have been due."""
    renewed = {(call.key, call.owner) for call in writes.history.calls if call.method == "renew"}
    return any(
        ended - begun > LONGEST_UNRENEWED and (key, owner) in renewed
        for key, owner, begun, ended in writes.long_tries()
    )


#: By name: what finds its violations, and the precondition.
ATOMIC_INVARIANTS: Final[dict[str, tuple[Any, Any]]] = {
    "writes once": (_writes_once, lambda writes: bool(writes.applied)),
    "outcome with writes": (_outcome_has_writes, lambda writes: bool(writes.returned)),
    "zombie's writes": (_no_zombie, lambda writes: any(writes.met_another())),
    "refused writes": (
        _refused,
        lambda writes: any(entry.details["error"] in REFUSALS for entry, _ in writes.reports("FAILURE")),
    ),
    "reported writes": (_reported, lambda writes: any(writes.reports("SUCCESS"))),
    "unanswered writes": (
        _unanswered,
        lambda writes: any(tries[-1].answer is None for tries in writes.tries.values() if tries),
    ),
    "no renewal": (_no_renewal, _is_tried_longer),
}
