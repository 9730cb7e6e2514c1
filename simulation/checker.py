"""The promise, held against a history: invariants, each with its precondition, and how many histories meet it."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any, Final

from idempotent_tasks.core.results import ELSEWHERE
from simulation.atomic_rules import ATOMIC_INVARIANTS, AtomicWrites
from simulation.faults import BUCKET_FAULTS, DATABASE_FAULTS, NETWORK_FAULTS, OPERATOR_KINDS, TRANSACTION_FAULTS
from simulation.history import TRIED_ON_SECONDS, Entry, History
from simulation.items import holder, is_lock, requested_at, text, until
from simulation.receipt_rules import RECEIPT_INVARIANTS, ReceiptRows
from simulation.rerun_rules import RERUN_INVARIANTS, Reruns
from simulation.run_counts import RunCounts, asked_twice, counted_once, generations, kept, numbers, reruns
from simulation.scheduler import CLOCK_SECONDS, START
from simulation.step_row_rules import STEP_ROW_INVARIANTS, StepRows
from simulation.step_rules import STEP_INVARIANTS, StepFacts

__all__ = ["INVARIANTS", "Violation", "check"]

#: The states of a task that nothing follows.
FINAL: Final = ("SUCCESS", "FAILURE")


#: What ends a process, or bodies in it.
KILLS: Final = frozenset(
    {"child-killed", "worker-killed", "body-died", "hard-limit", "exits", "out-of-memory", "shut-down-cold"}
    | {"killed-in-transaction", "killed-in-keep"}
)
#: What may keep a claim from being renewed or released in time.
DISTURBANCES: Final = KILLS | {
    *NETWORK_FAULTS,
    *BUCKET_FAULTS,
    *OPERATOR_KINDS,
    *TRANSACTION_FAULTS,
    *DATABASE_FAULTS,
    *("store-away", "throttled-for-a-while", "child-stopped", "machine-frozen", "stopped-in-transaction"),
    "stopped-in-keep",
}
#: Ends of processes that bodies bring about, none of them while a step is being kept.
_BODIES_OWN: Final = frozenset({"body-died", "exits", "out-of-memory"})
#: Deliveries that fail because they have no result to replay; no event says so.
_WITHOUT_RESULT: Final = frozenset({"unwritable-result", "small-records"})
#: What may keep a parent from releasing the claim of a child that has ended.
UNREAPED: Final = (DISTURBANCES - KILLS) | {"worker-killed", "out-of-memory"}
#: Seconds within which it does.
REAP_SECONDS: Final = 3.0
#: What costs no request to DynamoDB.
FREE: Final = frozenset(
    {"message-doubled", "message-reordered", "visibility-timeout", "connection-lost", "prefetched", "restored"}
    | {"child-recycled", "clock-set", "shut-down-warm", "soft-limit", "interrupt-caught"}
)
#: What may keep a message from going back to its queue.
_REFUSALS: Final = ("publish-refused", "publish-unconfirmed")
#: What becomes of an outcome that its process keeps, and why it may be given up.
_LATE_ENDS: Final = ("RecordedLate", "Superseded", "Unrecorded")
_GIVEN_UP: Final = ("Expired", "ProcessEnds", "Released", "Vanished")
#: For how many seconds outcomes are kept: those of keys that begin so, and at least those of the others.
_BRIEF: Final = ("brief#", "writes-brief#", "rows-brief#", "steps-brief#")
SHORTEST_SECONDS: Final = 20
LONG_SECONDS: Final = 3600
#: After how many crashes in a row the task "crashing" is not tried again.
MOST_CRASHES: Final = 2
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
        #: Whether it has nothing but what costs no request, and what its bodies and calls want.
        self.is_untroubled = history.counts.keys() <= FREE | (history.features - KILLS - _WITHOUT_RESULT)
        self.published = {entry.details["id"]: entry for entry in history.of("published")}
        #: The keys whose claims an operator may have ended by force, whoever ran under them.
        self.forced = {entry.details["key"] for entry in history.of(*OPERATOR_KINDS) if entry.details["force"]}
        #: Whether messages may be lost, because they are acknowledged before a body that is cut short.
        self.may_lose = history.acks_early and not {*KILLS, *_REFUSALS, "body-rejects"}.isdisjoint(history.counts)
        self.keys = _keys(history)
        self.counts = RunCounts(history)
        self.reruns = Reruns(history, self.counts, ends, _begun_anew(self))
        self.atomic = AtomicWrites(history, self.counts, lambda before, entry: _begins_anew(self, before, entry))
        self.rows = ReceiptRows(history, self.counts, may_lose=self.may_lose)
        is_calm = (DISTURBANCES - _BODIES_OWN).isdisjoint(history.counts)
        self.steps = StepFacts(history, self.counts, self.forced, is_calm=is_calm)
        self.step_rows = StepRows(self.steps, self.rows)
        #: The tasks whose own run has stored a result that a replay can return.
        self.succeeded = {
            entry.details["task_id"]
            for entry in history.of("Committed")
            if entry.details.get("replayable")
            and text(self.item_at(entry.details["key"], entry.at), "status") == "COMPLETED"
        }

    def fails_past_limit(self, task_id: str) -> bool:
        """Return whether a task has failed, visibly, because its hard time limit came when its body had just ended.

        Celery reports that failure, and acknowledges the message, whatever the delivery was about to send: its outcome
        is stored before the limit, or between that and the end of the process.
        """
        committed = any(entry.details["task_id"] == task_id for entry in self.history.of("Committed"))
        limited = any(entry.details.get("id") == task_id for entry in self.history.of("hard-limit"))
        result = self.result(task_id)
        is_reported = result.get("status") == "FAILURE" and result["result"]["exc_type"] == "TimeLimitExceeded"
        return is_reported and committed and limited

    def fails_with_chain(self, task_id: str) -> bool:
        """Return whether a group that has replaced a task could not go on, which the last task of its chain reports.

        Celery completes the group like a chord, whose body is the rest of the chain with the replaced task at its head,
        and a chain's id is that of its last task (``celery.backends.base.Backend.chord_error_from_stack``).
        """
        call = self.published[task_id]
        last = self.result((call.details.get("followers") or (task_id,))[-1])
        is_reported = last.get("status") == "FAILURE" and last["result"]["exc_type"] == "ChordError"
        return is_reported and task_id in self.ids_of("replaced")

    def ids_of(self, *kinds: str) -> set[str]:
        """Return the task ids of some kinds of entries."""
        names = ("id", "task_id")
        return {entry.details[name] for entry in self.history.of(*kinds) for name in names if name in entry.details}

    def released_at(self, run: _Run) -> float:
        """Return when a run was over, or had handed its key over to its retry."""
        own = (entry for entry in self.items[run.key] if entry.details["by"] == run.began.details["process"])
        given = (entry.at for entry in own if entry.at >= run.began.at and "owner" not in entry.item)
        return min(next(given, run.over_at), run.over_at)

    def item_at(self, key: str, at: float) -> dict[str, Any]:
        """Return the item of a key as of a time."""
        before = [entry for entry in self.items[key] if entry.at <= at]
        return before[-1].item if before else {}

    def result(self, task_id: str) -> dict[str, Any]:
        """Return what the result backend has for a task."""
        stored = self.history.results.get(f"celery-task-meta-{task_id}")
        return {} if stored is None else json.loads(stored)


def _one_run(facts: _Facts) -> Iterator[Violation]:
    """While a claim is alive, no other run of its key begins."""
    for number, later in enumerate(facts.runs):
        if later.key in facts.forced and holder(facts.item_at(later.key, later.began.at)) != later.owner:
            # An operator has taken the key from it by force, after its claim and before its body.
            continue
        for earlier in facts.runs[:number]:
            if earlier.key != later.key or earlier.over_at <= later.began.at or earlier.owner == later.owner:
                continue
            written = [entry for entry in facts.items[earlier.key] if entry.at <= later.began.at]
            for last, taken in zip_longest(written, written[1:]):
                if holder(last.item) != earlier.owner:
                    continue
                if taken is None and until(last.item) > later.began.at + CLOCK_SECONDS:
                    what = f"run {later.began.details['run']} began beside a living claim"
                    yield Violation("one run", later.began.at, what)
                elif taken is not None and _is_taken_early(facts, earlier, last, taken):
                    what = f"the claim of run {earlier.began.details['run']} was taken early"
                    yield Violation("one run", taken.at, what)


def _is_taken_early(facts: _Facts, run: _Run, last: Entry, taken: Entry) -> bool:
    """Return whether a running run's claim was taken that had not expired, nor was given up by itself or by force."""
    by_itself = taken.details["by"] == run.began.details["process"] or run.key in facts.forced
    is_over = by_itself or until(last.item) <= taken.at + CLOCK_SECONDS
    return holder(taken.item) != run.owner and not is_over


def _subject(facts: _Facts, run: _Run) -> str:
    """Return what a run must not share with another at the same time: its call's key, its order, or its task id."""
    details = run.began.details
    call = facts.published.get(details["id"])
    explicit = None if call is None else call.details.get("key")
    return str(explicit or details["id" if details["task"].endswith("own") else "order"])


def _undisturbed(facts: _Facts) -> Iterator[Violation]:
    """Where nothing keeps claims from being renewed and released, no two runs of a key overlap, and none blocks it."""
    committed = {entry.details["fence"] for entry in facts.history.of("Committed")}
    for_good = {entry.details["run"] for entry in facts.history.of("failed-for-good")}
    handed_over = facts.ids_of("handed-over")
    for number, run in enumerate(facts.runs):
        for earlier in facts.runs[:number]:
            if _subject(facts, earlier) == _subject(facts, run) and facts.released_at(earlier) > run.began.at:
                yield Violation("undisturbed", run.began.at, f"run {run.began.details['run']} overlaps with another")
        item = facts.item_at(run.key, run.over_at + RELEASE_SECONDS)
        if run.began.details["fence"] not in committed and text(item, "owner") == run.owner:
            yield Violation("undisturbed", run.over_at, f"run {run.began.details['run']} did not release its key")
        own = facts.item_at(run.began.details["key"], run.over_at + RELEASE_SECONDS)
        is_final = run.began.details["run"] in for_good and run.began.details["id"] not in handed_over
        if is_final and text(own, "status") != "FAILED":
            yield Violation("undisturbed", run.over_at, f"the failure of run {run.began.details['run']} is no outcome")


def _reaped(facts: _Facts) -> Iterator[Violation]:
    """Where the network is well and workers live, the key of a run whose process has ended is soon free."""
    stopped = {entry.details["run"] for entry in facts.history.of("stopped")}
    for run in facts.runs:
        number = run.began.details["run"]
        item = facts.item_at(run.key, run.over_at + REAP_SECONDS)
        if number in stopped and text(item, "owner") == run.owner and text(item, "status") == "INPROGRESS":
            yield Violation("reaped", run.over_at, f"the key of run {number} is not free, and its process has ended")


def _live_claim(facts: _Facts) -> Iterator[Violation]:
    """A body begins only under a claim that is its own and has not expired, of its key and of its lock."""
    for run in facts.runs:
        keys = {run.key, run.began.details["key"]}
        if keys & facts.forced:
            # An operator may have ended the claim before its answer came.
            continue
        items = [facts.item_at(key, run.began.at) for key in keys]
        if not all(_holds(run, item) for item in items):
            yield Violation("live claim", run.began.at, f"run {run.began.details['run']} began without a claim")


def _holds(run: _Run, item: dict[str, Any]) -> bool:
    """Return whether an item is a claim of a run that has not expired when it begins."""
    return holder(item) == run.owner and until(item) >= run.began.at - CLOCK_SECONDS


def _lost(facts: _Facts) -> Iterator[Violation]:
    """A body that is told that its claim is lost has lost it, or the claim of its lock."""
    runs = {run.began.details["run"]: run for run in facts.runs}
    for entry in facts.history.of("effect"):
        run = runs.get(entry.details["run"])
        if run is None or not entry.details.get("lost"):
            continue
        keys = {run.key, run.began.details["key"]}
        if all(text(facts.item_at(key, entry.at), "owner") == run.owner for key in keys):
            yield Violation("lost", entry.at, f"run {entry.details['run']} was told that its claim is lost")


def _downstream(facts: _Facts) -> Iterator[Violation]:
    """All runs of a key pass the same key to downstream systems."""
    passed: dict[str, set[str]] = defaultdict(set)
    for entry in facts.history.of("effect"):
        key = entry.details["key"]
        passed[key].add(entry.details["downstream"])
        if len(passed[key]) > 1:
            yield Violation("downstream", entry.at, f"the runs of {key} pass several keys to downstream systems")


def _crash_loop(facts: _Facts) -> Iterator[Violation]:
    """No more bodies of a key crash in a row than its task allows, unless its record says something else between."""
    crashes: Counter[str] = Counter()
    holders: dict[str, str | None] = {}
    kinds = ("CrashLooped", "written", "stopped", "over")
    for entry in facts.history.of(*kinds):
        key = entry.details["key"]
        if entry.kind == "written":
            holders[key] = holder(entry.item)
        if entry.kind == "stopped":
            # A run that has handed over its key, or lost it, crashes for itself.
            crashes[key] += holders[key] == entry.details["owner"] and entry.details["task"] == "crashing"
            if crashes[key] > MOST_CRASHES:
                yield Violation("crash loop", entry.at, f"{crashes[key]} bodies of {key} crashed in a row")
        elif entry.kind != "written" or text(entry.item, "attempt") in (None, "0"):
            crashes[key] = 0


def _one_outcome(facts: _Facts) -> Iterator[Violation]:
    """The first outcome of a key stays while it is kept; nobody claims the key again, or writes another one."""
    for key, written in facts.items.items():
        first = None
        for entry, before in zip(written, [None, *written], strict=False):
            if before is not None and _begins_anew(facts, before, entry):
                first = None
            item = entry.item
            outcome = None if text(item, "status") == "INPROGRESS" else (text(item, "status"), text(item, "data"))
            if first is not None and outcome != first:
                yield Violation("one outcome", entry.at, f"the outcome of {key} was replaced")
                break
            first = first or (outcome if item else None)
            if outcome is not None and item and not _is_kept(key, entry):
                yield Violation(
                    "one outcome", entry.at, f"the outcome of {key} is not kept for as long as its task says"
                )


def _is_kept(key: str, entry: Entry) -> bool:
    """Return whether an outcome is kept for its task's ``expires`` from when it was stored."""
    item, kept = entry.item, SHORTEST_SECONDS if key.startswith(_BRIEF) else LONG_SECONDS
    stored_at = int(text(item, "completed_at") or 0) / 1000
    return int(text(item, "expiration") or 0) - stored_at > kept - CLOCK_SECONDS


def _begins_anew(facts: _Facts, before: Entry, entry: Entry) -> bool:
    """Return whether a write ends what its key's record said: an operator's, or the first after its retention."""
    if not (entry.item and before.item):
        return bool(facts.history.operator in (entry.details["by"], before.details["by"]))
    kept_until = float(text(before.item, "expiration") or math.inf)
    return kept_until - START < entry.at + CLOCK_SECONDS


def _one_result(facts: _Facts) -> Iterator[Violation]:
    """All tasks of a key that succeed have one result, the outcome on its record, and one payload."""
    at = facts.history.entries[-1].at
    # Without one outcome, with several, or with a message of another task under their id.
    unrecorded = Counter(entry.details["key"] for entry in facts.history.of("Unrecorded"))
    unrecorded -= Counter(entry.details["key"] for entry in facts.history.of("RecordedLate"))
    exempt = unrecorded.keys() | _begun_anew(facts)
    others = facts.ids_of("replaced", "handed-over")
    results: dict[str, set[str]] = defaultdict(set)
    amounts: dict[str, set[int]] = defaultdict(set)
    for task_id, keys in facts.keys.items():
        result = facts.result(task_id)
        if result.get("status") == "SUCCESS" and len(keys) == 1 and not keys & exempt and task_id not in others:
            results[min(keys)].add(json.dumps(result["result"]))
            if facts.history.task == "validated" and task_id in facts.published:
                amounts[min(keys)].add(facts.published[task_id].details.get("amount", 0))
    for key, found in results.items():
        if len(found) > 1 or found != (_recorded(facts.history, key) or found):
            yield Violation("one result", at, f"the tasks of {key} have other results than its record")
        if len(amounts[key]) > 1:
            yield Violation("one result", at, f"tasks with other payloads have the result of {key}")


def _begun_anew(facts: _Facts) -> set[str]:
    """Return the keys whose records were deleted, or outlived."""
    return {
        key for key, written in facts.items.items() if any(_begins_anew(facts, *pair) for pair in pairwise(written))
    }


def _recorded(history: History, key: str) -> set[str]:
    """Return the result on a key's record, as the only member of a set; none where it has none."""
    item = history.items.get(key, {})
    if text(item, "status") != "COMPLETED" or (data := text(item, "data")) is None:
        return set()
    if (text(item, "codec") or "").endswith(ELSEWHERE):
        # Where there is no such object, it is no task's result.
        data = history.objects.get(data, b"").decode()
    try:
        return {json.dumps(json.loads(data))}
    except ValueError:
        return {data}


def _keys(history: History) -> dict[str, set[str]]:
    """Return the keys of each task by its id, as the library's events name them."""
    kinds = ("Claimed", "Replayed", "Committed", "Deferred")
    keys: dict[str, set[str]] = defaultdict(set)
    for entry in history.of(*kinds):
        keys[entry.details["task_id"]].add(entry.details["key"])
    return keys


def _nothing_lost(facts: _Facts) -> Iterator[Violation]:
    """Every task that was published ends, given that faults stop."""
    at = facts.history.entries[-1].at
    if not facts.history.ended:
        yield Violation("nothing lost", at, "messages are still on their way")
    # Celery stores no result of these: what their bodies, their publishers or ``on_busy`` wanted.
    silent = facts.ids_of("ignored-by-body", "Skipped", "revoked")
    silent |= {entry.details["id"] for entry in facts.history.of("published") if entry.details.get("ignored")}
    for task_id in facts.published:
        has_ended = facts.result(task_id).get("status") in FINAL or facts.fails_with_chain(task_id)
        if not facts.may_lose and task_id not in silent and not has_ended:
            yield Violation("nothing lost", at, f"{task_id} has no result")


def _fences(facts: _Facts) -> Iterator[Violation]:
    """Each claim of a key has a larger fence than those before it, also than those before its record was deleted.

    But for a claim request that was on its way when the record was.
    """
    for key, written in facts.items.items():
        before, fence, deleted_at = None, 0, -math.inf
        for entry in written:
            item = entry.item
            deleted_at = deleted_at if item else entry.at
            owner = holder(entry.item)
            if owner is not None:
                new_fence = int(text(item, "fence") or 0)
                is_late = requested_at(item) < deleted_at
                if not is_late and (new_fence < fence or (new_fence == fence and owner != before)):
                    yield Violation("fences", entry.at, f"{key} was claimed with fence {new_fence} after {fence}")
                fence = new_fence if is_late else max(fence, new_fence)
            before = owner


def _continuation(facts: _Facts) -> Iterator[Violation]:
    """What follows a task that succeeded is sent at least once, unless its hard limit made it a failure meanwhile."""
    at = facts.history.entries[-1].at
    followed = {entry.details["of"] for entry in facts.history.of("followed")}
    stopped = facts.ids_of("callbacks-stopped")
    if facts.may_lose:
        return
    for task_id, entry in facts.published.items():
        missing = set(entry.details.get("followers", ())) - followed
        ended_well = facts.result(task_id).get("status") == "SUCCESS" or task_id in facts.succeeded
        if missing and task_id not in stopped and ended_well and not facts.fails_past_limit(task_id):
            yield Violation("continuation", at, f"what follows {task_id} was never sent")
    for entry in facts.history.of("chord"):
        ids, of = entry.details["ids"], entry.details["of"]
        succeeded = all(facts.result(each).get("status") == "SUCCESS" for each in ids)
        if succeeded and of not in followed and not facts.history.failed & {*ids, of}:
            yield Violation("continuation", at, f"the body of the chord of {' and '.join(ids)} was never sent")


def _one_continuation(facts: _Facts) -> Iterator[Violation]:
    """What follows a task has one task id, however often it is sent: a guarded one has its effect once."""
    # What replaces a task, or has another key, has another continuation.
    exempt = facts.ids_of("replaced") | {task_id for task_id, keys in facts.keys.items() if len(keys) > 1}
    ids: dict[str, set[str]] = defaultdict(set)
    for entry in facts.history.of("followed"):
        ids[entry.details["of"]].add(entry.details["id"])
        if len(ids[entry.details["of"]]) > 1 and entry.details["of"] not in exempt:
            yield Violation("one continuation", entry.at, f"what follows {entry.details['of']} was sent as two tasks")
    begun_anew = _begun_anew(facts)
    stopped = {entry.details["run"] for entry in facts.history.of("callbacks-stopped")}
    # A body that returns after its retry was sent has a continuation of its own, and so has one whose outcome nobody
    # could record.
    sent = ids.keys() - facts.ids_of("handed-over", "Unrecorded") - exempt
    committed = {entry.details["fence"] for entry in facts.history.of("Committed")}
    # Where the body's database has lost a try, another one under the same claim counts.
    tries = {(run.began.details["key"], run.began.details.get("grant")): run for run in facts.runs}
    for run in tries.values():
        details = run.began.details
        is_last = details["run"] in stopped and details["fence"] in committed and details["key"] not in begun_anew
        if is_last and details["id"] in sent:
            yield Violation("one continuation", run.over_at, f"what run {details['run']} has stopped was sent")


def _apology(facts: _Facts) -> Iterator[Violation]:
    """The error callback of a task that failed is sent at least once, where the broker takes it."""
    apologised = {entry.details["of"] for entry in facts.history.of("apologised")}
    for task_id, entry in facts.published.items():
        failed = facts.result(task_id).get("status") == "FAILURE"
        if entry.details.get("apology") and failed and task_id not in apologised and not facts.may_lose:
            yield Violation("error callback", facts.history.entries[-1].at, f"nobody was told that {task_id} failed")


def _skipped(facts: _Facts) -> Iterator[Violation]:
    """A message is skipped only where another task of its key has run, and where nothing waits for it.

    But for what a body has stopped before it asked for the retry that is skipped.
    """
    stopped = facts.ids_of("callbacks-stopped")
    for entry in facts.history.of("Skipped"):
        task_id = entry.details["task_id"]
        locks = [key for key in facts.items if is_lock(key)]
        holders = {
            text(written.item, "task_id")
            for key, items in facts.items.items()
            if key in locks or not locks
            for written in items
            if written.at <= entry.at
        }
        if not holders - {task_id, None}:
            yield Violation("skipped", entry.at, f"{task_id} was skipped for its own run")
        awaited = {each for chord in facts.history.of("chord") for each in chord.details["ids"]}
        call = facts.published.get(task_id)
        is_followed = call is not None and call.details.get("followers") and task_id not in stopped
        if task_id in awaited or is_followed:
            yield Violation("skipped", entry.at, f"{task_id} was skipped, and something waits for it")


#: The tasks with a lock, and those whose deliveries or publishes may ask the store without saying so.
_LOCKED: Final = (
    "exclusive",
    "skipping",
    "parks-exclusive",
    "recovers-exclusive",
    "writes-exclusive",
    "rows-exclusive",
)
_POLLING: Final = ("waits", "raises", "joined", "refused")
#: What costs requests beside those of undisturbed runs: a rerun, and what becomes of it.
_RERUNS: Final = ("Parked", "asked", "deciding")
#: By event of the library: how many requests it stands for, without a lock and with one.
_COSTS: Final = {
    "Claimed": (1, 2),
    "Committed": (1, 2),
    "Released": (1, 2),
    "Replayed": (1, 1),
    "Deferred": (2, 4),
    "Merged": (1, 3),
    "Skipped": (1, 3),
    "CrashLooped": (1, 1),
    **dict.fromkeys(("Renewed", "Dispatched", "Reserved", "Joined", "Refused", "Mismatched"), (1, 1)),
}


def _tried_on(facts: _Facts) -> Iterator[Violation]:
    """An outcome that its process keeps is stored, unless its key is another's or free by then, or the process ends."""
    for left in facts.history.of("Unrecorded"):
        if not left.details.get("kept"):
            continue
        ends = [end for end in facts.history.of(*_LATE_ENDS) if end.at > left.at and _is_end_of(end, left)]
        if not ends and left.details["process"] in facts.history.living:
            if facts.history.until > left.at + TRIED_ON_SECONDS:
                yield Violation(
                    "tried on", left.at, f"an outcome of {left.details['key']} is neither stored nor given up"
                )
        elif ends and ends[0].kind == "Unrecorded" and ends[0].details["reason"] not in _GIVEN_UP:
            yield Violation("tried on", ends[0].at, f"an outcome was given up: {ends[0].details['reason']}")
        elif ends and ends[0].kind == "Superseded":
            item = facts.item_at(left.details["key"], ends[0].at)
            if text(item, "status") == "INPROGRESS" and text(item, "fence") == str(ends[0].details["fence"]):
                yield Violation("tried on", ends[0].at, "an outcome was dropped although nobody had taken its key")


def _is_end_of(end: Entry, kept: Entry) -> bool:
    """Return whether an event says what became of an outcome that was kept."""
    same = all(end.details[name] == kept.details[name] for name in ("process", "key", "task_id"))
    return same and not end.details.get("kept")


def _budget(facts: _Facts) -> Iterator[Violation]:
    """Where nothing goes wrong, DynamoDB gets no more requests than `docs/explanation/cost.md` says."""
    # Each process asks for the time, again where its own clock is off; the first deferral of a message has no note.
    sent, most = facts.history.requests.total(), 2 * len(facts.history.requests)
    for entry in facts.history.of(*_COSTS):
        alone, locked = _COSTS[entry.kind]
        most += locked if entry.details["task"] in _LOCKED else alone
        most -= entry.kind == "Deferred" and entry.details["deferrals"] == 1
    # A transaction that is refused, and the read that tells why.
    most += 2 * len(facts.history.of("cancelled")) + _releases_met(facts) + _renewals_too_late(facts)
    # A step's write, that of its own item, its read, and the read of the record that ``recover`` gets.
    most += len(facts.steps.kept) + len(facts.history.of("step-written", "step-read", "step-asked"))
    if sent > most:
        yield Violation("budget", facts.history.entries[-1].at, f"{sent} requests instead of {most}")


def _releases_met(facts: _Facts) -> int:
    """Return how many claims may have met a release with a later time than theirs, for which they are sent again."""
    return sum(
        released.at < (call.ended_at or math.inf) - START
        and (following is None or following.at > call.called_at - START)
        and until(released.item) > call.called_at - START - CLOCK_SECONDS
        for call in facts.history.calls
        if call.method == "claim"
        for released, following in zip_longest(facts.items[call.key], facts.items[call.key][1:])
        if text(released.item, "status") == "INPROGRESS" and "owner" not in released.item
    )


def _renewals_too_late(facts: _Facts) -> int:
    """Return how many renewals were on their way when their run committed or released its claim: nothing shows them."""
    ends = [call for call in facts.history.calls if call.method in ("commit", "commit_with", "release")]
    return sum(
        renewal.called_at < (end.ended_at or math.inf) and end.called_at < (renewal.ended_at or math.inf)
        for renewal in facts.history.calls
        if renewal.method == "renew"
        for end in ends
        if (end.key, end.owner) == (renewal.key, renewal.owner)
    )


def _merged(facts: _Facts) -> Iterator[Violation]:
    """A message is dropped as a duplicate only where another one of its task lives."""
    for entry in facts.history.of("Merged"):
        if not entry.details["others"]:
            yield Violation("merged", entry.at, f"the last message of {entry.details['task_id']} was dropped")


def _directed(facts: _Facts) -> Iterator[Violation]:
    """A directed history has what its schedule must lead to, and ends in time."""
    history, last = facts.history, facts.history.entries[-1].at
    found = Counter(entry.kind for entry in history.entries)
    found += Counter(f"{entry.kind} {entry.details['task']}" for entry in history.entries if "task" in entry.details)
    found["began again"] = sum(entry.details["attempt"] > 1 for entry in history.of("began"))
    for kind, count in history.expected.items():
        if found[kind] != count:
            yield Violation("directed", last, f"{found[kind]} times {kind} instead of {count}")
    if last > history.due:
        yield Violation("directed", last, f"it was to end after {history.due} s")


def _protocol(facts: _Facts) -> Iterator[Violation]:
    """Each answer of the store, and each record that it leaves, is one that the protocol permits."""
    for entry in facts.history.of("differs"):
        yield Violation("protocol", entry.at, entry.details["what"])


def _counted(
    name: str, find: Callable[[RunCounts], Iterator[tuple[float, str]]]
) -> Callable[[_Facts], Iterator[Violation]]:
    """Return the invariant of a name whose violations are found in the counts of runs."""
    return lambda facts: (Violation(name, at, what) for at, what in find(facts.counts))


def _rules_of(
    part: Callable[[_Facts], Any], rules: Mapping[str, tuple[Any, Any]]
) -> dict[str, tuple[Callable[[_Facts], Iterator[Violation]], Callable[[_Facts], bool]]]:
    """Return invariants by name whose violations are found in a part of the facts, each with its precondition."""

    def bound(name: str, find: Any, applies: Any) -> Any:
        return lambda facts: (Violation(name, *each) for each in find(part(facts))), lambda facts: applies(part(facts))

    return {name: bound(name, *rule) for name, rule in rules.items()}


#: By name: what finds its violations, and the precondition that a history must meet for it to say anything.
INVARIANTS: Final[dict[str, tuple[Callable[[_Facts], Iterator[Violation]], Callable[[_Facts], bool]]]] = {
    "directed": (_directed, lambda facts: bool(facts.history.expected)),
    "protocol": (_protocol, lambda facts: bool(facts.history.of("called"))),
    "one run": (_one_run, lambda facts: len(facts.runs) > 1),
    "undisturbed": (_undisturbed, lambda facts: facts.is_undisturbed and len(facts.runs) > 1),
    "reaped": (
        _reaped,
        lambda facts: (
            facts.history.watched and UNREAPED.isdisjoint(facts.history.counts) and bool(facts.history.of("stopped"))
        ),
    ),
    "live claim": (_live_claim, lambda facts: bool(facts.runs)),
    "lost": (_lost, lambda facts: any(entry.details.get("lost") for entry in facts.history.of("effect"))),
    "downstream": (
        _downstream,
        lambda facts: (
            max(Counter(entry.details["key"] for entry in facts.history.of("effect")).values(), default=0) > 1
        ),
    ),
    "crash loop": (
        _crash_loop,
        # An operator's command makes a record forget.
        lambda facts: (
            "body-died" in facts.history.counts
            and facts.history.task == "crashing"
            and facts.history.counts.keys().isdisjoint({*OPERATOR_KINDS, "retry-without-raise"})
        ),
    ),
    "one outcome": (_one_outcome, lambda facts: bool(facts.history.of("Committed", "resolved"))),
    "one result": (_one_result, lambda facts: bool(facts.history.of("Committed", "Replayed"))),
    "nothing lost": (_nothing_lost, lambda facts: bool(facts.published)),
    "fences": (_fences, lambda facts: any(len(written) > 1 for written in facts.items.values())),
    "continuation": (
        _continuation,
        lambda facts: (
            any(entry.details.get("followers") for entry in facts.published.values()) or bool(facts.history.of("chord"))
        ),
    ),
    "one continuation": (_one_continuation, lambda facts: bool(facts.history.of("followed"))),
    "error callback": (
        _apology,
        lambda facts: "error-callback" in facts.history.counts and facts.history.counts.keys().isdisjoint(_REFUSALS),
    ),
    "skipped": (_skipped, lambda facts: bool(facts.history.of("Skipped"))),
    "tried on": (
        _tried_on,
        lambda facts: any(entry.details.get("kept") for entry in facts.history.of("Unrecorded")),
    ),
    "budget": (
        _budget,
        lambda facts: (
            bool(facts.history.requests)
            and not facts.history.task.endswith(_POLLING)
            and facts.is_untroubled
            and not facts.history.of(*_RERUNS)
        ),
    ),
    # Where messages are acknowledged before their bodies run, the broker does not know of one whose body does.
    "merged": (_merged, lambda facts: bool(facts.history.of("Merged")) and not facts.history.acks_early),
    "run number": (
        _counted("run number", numbers),
        lambda facts: any(earlier for earlier, _ in facts.counts.pairs()),
    ),
    "rerun": (
        _counted("rerun", reruns),
        lambda facts: any(
            facts.counts.left_unresolved(earlier, grant.entry.at) for earlier, grant in facts.counts.pairs()
        ),
    ),
    "generation": (
        _counted("generation", generations),
        lambda facts: any(len(each) > 1 for each in facts.counts.starts),
    ),
    "counted once": (
        _counted("counted once", counted_once),
        lambda facts: bool(facts.counts.starts) and asked_twice(facts.history),
    ),
    "unresolved": (
        _counted("unresolved", kept),
        lambda facts: facts.history.unresolved_seconds is not None and bool(facts.counts.starts),
    ),
    **_rules_of(lambda facts: facts.reruns, RERUN_INVARIANTS),
    **_rules_of(lambda facts: facts.atomic, ATOMIC_INVARIANTS),
    **_rules_of(lambda facts: facts.rows, RECEIPT_INVARIANTS),
    **_rules_of(lambda facts: facts.steps, STEP_INVARIANTS),
    **_rules_of(lambda facts: facts.step_rows, STEP_ROW_INVARIANTS),
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
