"""Reruns, held against a history: what is parked, decided, asked about and left to settle."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from idempotent_tasks.core.records import message_bytes
from simulation.history import Entry, History
from simulation.items import holder, is_lock, is_parked, text, until
from simulation.provider import SETTLE_SECONDS
from simulation.run_counts import LONGEST_LEASE_SECONDS, Grant, RunCounts, is_claim, is_free, is_reserved
from simulation.scheduler import CLOCK_SECONDS, START
from simulation.tasks import ASKING, PARKING

__all__ = ["RERUN_INVARIANTS", "Reruns"]

#: What a message that is added to a parked record changes.
_MESSAGES: Final = frozenset({"parked", "parked_bytes"})

Found = Iterator[tuple[float, str]]


class Reruns:
    """A history's reruns.

    Args:
        history: the history.
        counts: its claims.
        ended: when each run was over, by its number; runs that are not are missing.
        anew: the keys whose records were deleted, or outlived.
    """

    def __init__(self, history: History, counts: RunCounts, ended: dict[int, float], anew: set[str]) -> None:
        self.history = history
        self.counts = counts
        self.ended = ended
        self.anew = anew
        self.parks = history.task in PARKING
        self.recovers = history.task in ASKING

    def is_own(self, key: str) -> bool:
        """Return whether a key is that of a run of the history's task: no lock, and not of what follows the task."""
        # In the small world keys have no prefix, and nothing follows.
        return ("#" not in key or key.startswith(f"{self.history.task}#")) and not is_lock(key)

    def starts(self) -> Iterator[list[Grant]]:
        """Yield the claims of the task's keys, by their fresh starts."""
        return (start for start in self.counts.starts if start and self.is_own(start[0].entry.details["key"]))

    def steps(self) -> Iterator[tuple[str, dict[str, Any], Entry]]:
        """Yield each write of the task's keys, with the item that it met."""
        for key, written in self.counts.written.items():
            old: dict[str, Any] = {}
            for entry in written:
                if self.is_own(key):
                    yield key, old, entry
                old = entry.item

    def item_at(self, key: str, at: float) -> dict[str, Any]:
        """Return the item of a key as of a time."""
        return next((each.item for each in reversed(self.counts.written[key]) if each.at <= at), {})

    def has_parked(self) -> bool:
        """Return whether a key was parked."""
        return any(is_parked(entry.item) for _, _, entry in self.steps())

    def by_force(self, entry: Entry) -> bool:
        """Return whether an operator has deleted a record, with all that is in it."""
        return entry.details["by"] == self.history.operator and not entry.item


def _messages(item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = item.get("parked", {}).get("M", {})
    return found


def _never_again(reruns: Reruns) -> Found:
    """Where reruns are parked, no body follows one that may have done something, unless a person says so."""
    for earlier, grant in reruns.counts.pairs():
        assert grant.began is not None
        if reruns.is_own(grant.entry.details["key"]) and reruns.counts.left_unresolved(earlier, grant.entry.at):
            yield grant.began.at, f"run {grant.began.details['run']} began although an earlier one left no outcome"


def _stays_parked(reruns: Reruns) -> Found:
    """A key is parked by the claim that holds it, and stays as it is until a person decides, but for its messages."""
    for key, old, entry in reruns.steps():
        new = entry.item
        if is_parked(new) and not is_parked(old) and text(new, "owner") != f"parked after {holder(old)}":
            yield entry.at, f"{key} was parked by another than its holder"
        if not is_parked(old) or reruns.by_force(entry):
            continue
        changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
        if changed - _MESSAGES and entry.details["by"] != reruns.history.person:
            yield entry.at, f"{key} was parked, and its {sorted(changed - _MESSAGES)} changed"


def _kept_messages(reruns: Reruns) -> Found:
    """A message that is kept for a person's decision stays until it is published again after the latest one."""
    kept_at: dict[tuple[str, str], float] = {}
    decided_at: dict[str, float] = {}
    again = reruns.history.of("published-again")
    for key, old, entry in reruns.steps():
        before, after = _messages(old), _messages(entry.item)
        if is_parked(old) and not is_parked(entry.item):
            decided_at[key] = entry.at
        for task_id in after.keys() - before.keys():
            kept_at[key, task_id] = entry.at
        if any(after[each] != before[each] for each in after.keys() & before.keys()):
            yield entry.at, f"a message of {key} was replaced by another"
        size = sum(message_bytes(task_id, message["B"]) for task_id, message in after.items())
        if size != int(text(entry.item, "parked_bytes") or 0):
            yield entry.at, f"the messages of {key} have {size} bytes, and its record says otherwise"
        for task_id in before.keys() - after.keys():
            since = max(kept_at.get((key, task_id), -math.inf), decided_at.get(key, -math.inf))
            about = {"key": key, "id": task_id}
            is_published = any(about.items() <= each.details.items() and since < each.at <= entry.at for each in again)
            if not is_published and not reruns.by_force(entry):
                yield entry.at, f"the message of {task_id} was removed from {key}, and not published again"
    for key, item in reruns.history.items.items() if reruns.history.person else ():
        if is_parked(item) or _messages(item):
            yield reruns.history.until, f"{key} was never decided, or its messages were not published again"


def _ends_visibly(reruns: Reruns) -> Found:
    """No task is left unresolved once every key is decided: its message was kept, and its copy has an outcome."""
    history = reruns.history
    # Celery stores no result for these, and what was stored before stays.
    silent = {each.details["id"] for each in history.of("ignored-by-body")}
    silent |= {each.details["task_id"] for each in history.of("Skipped")}
    keys: dict[str, set[str]] = defaultdict(set)
    for entry in history.of("Parked"):
        keys[entry.details["task_id"]].add(entry.details["key"])
    for task_id, own in keys.items():
        result = _result(history, task_id)
        is_left = result.get("status") == "FAILURE" and result["result"]["exc_type"] == "UnresolvedError"
        if is_left and task_id not in silent and not own & reruns.anew:
            yield history.until, f"{task_id} is still unresolved"


def _result(history: History, task_id: str) -> dict[str, Any]:
    stored = history.results.get(f"celery-task-meta-{task_id}")
    return {} if stored is None else json.loads(stored)


def _decided(reruns: Reruns) -> Found:
    """What a person says that a run has done is the one outcome, and no body begins after it."""
    history = reruns.history
    for decision in history.of("resolved"):
        key, done = decision.details["key"], decision.details["done"]
        if done is None or not decision.details["written"] or key in reruns.anew:
            continue
        item = history.items.get(key, {})
        if text(item, "status") != "COMPLETED" or text(item, "data") != json.dumps(done):
            yield decision.at, f"the outcome of {key} is not {done}, as was decided"
        for entry in history.of("began"):
            if entry.details["key"] == key and entry.at > decision.at:
                yield entry.at, f"run {entry.details['run']} of {key} began after it was decided"


def _asked_first(reruns: Reruns) -> Found:
    """Where the provider can be asked, no rerun's body begins before it says that nothing was done."""
    answers = {
        (each.details["key"], each.details["grant"]): each.details["answer"] for each in reruns.history.of("answered")
    }
    for entry in reruns.history.of("asked"):
        if not entry.details["rerun"]:
            yield entry.at, f"the provider was asked about {entry.details['key']}, which no run has begun"
    for entry in reruns.history.of("began"):
        answer = answers.get((entry.details["key"], entry.details.get("grant")))
        if reruns.is_own(entry.details["key"]) and entry.details.get("rerun") and answer != "NotDone":
            yield entry.at, f"run {entry.details['run']} began as a rerun, and the answer was {answer}"


def _one_effect(reruns: Reruns) -> Found:
    """Where the provider can be asked, a key's effect happens once: requests settle, and no run outlives its claim."""
    effects: dict[str, int] = defaultdict(int)
    exempt = reruns.anew | _outlived(reruns)
    for entry in reruns.history.of("charged"):
        key = entry.details["key"]
        effects[key] += 1
        if effects[key] > 1 and key not in exempt:
            yield entry.at, f"the effect of {key} happened {effects[key]} times"


def _outlived(reruns: Reruns) -> set[str]:
    """Return the keys of runs that have sent a request after their claims, but for what those have to settle."""
    began = {each.details["run"]: each for each in reruns.history.of("began")}
    keys = set()
    for entry in reruns.history.of("requested"):
        key, owner = entry.details["key"], began[entry.details["run"]].details["owner"]
        item = reruns.item_at(key, entry.at)
        if holder(item) != owner or until(item) - SETTLE_SECONDS < entry.at + CLOCK_SECONDS:
            keys.add(key)
    return keys


def _settled(reruns: Reruns) -> Found:
    """Nobody is granted a key while a run's requests may be on their way; nor by the end of its claim before that."""
    least = LONGEST_LEASE_SECONDS + SETTLE_SECONDS
    for key, old, entry in reruns.steps():
        new = entry.item
        if not is_claim(old, new):
            continue
        settled_at = int(text(old, "settled_at") or 0) / 1000 - START
        if is_free(old) and entry.at < settled_at - CLOCK_SECONDS:
            yield entry.at, f"{key} was claimed {settled_at - entry.at:.1f} s before it had settled"
        lasts = until(new) - (int(text(new, "claimed_at") or 0) / 1000 - START)
        if not is_reserved(new) and lasts < least - CLOCK_SECONDS:
            yield entry.at, f"the claim of {key} lasts {lasts:.1f} s, and nothing is left to settle"
    retried = {entry.details["run"]: entry.at for entry in reruns.history.of("retries")}
    for start in reruns.starts():
        for grant in start:
            if grant.began is None or grant.released is None or not reruns.counts.counts(grant, grant.released.at):
                continue
            if reruns.counts.is_released_by_operator(grant):
                continue
            item, at = grant.released.item, grant.released.at
            number = grant.began.details["run"]
            # A release may be long on its way.
            over_at = min(reruns.ended.get(number, at), retried.get(number, at), at)
            settled_at = int(text(item, "settled_at") or 0) / 1000 - START
            if settled_at < over_at + SETTLE_SECONDS - CLOCK_SECONDS:
                yield at, f"run {grant.began.details['run']} was released, and does not settle"


def _not_skipped(reruns: Reruns) -> Found:
    """A message is skipped only where somebody holds its key, not while that settles."""
    delivered: dict[str, float] = {}
    for entry in reruns.history.of("delivered", "Skipped"):
        if entry.kind == "delivered":
            delivered[entry.details["process"]] = entry.at
            continue
        key, since = entry.details["key"], delivered.get(entry.details["process"], 0.0)
        met = [reruns.item_at(key, since), *(each.item for each in reruns.counts.written[key] if since <= each.at)]
        if not any(holder(item) for item in met):
            yield entry.at, f"{entry.details['task_id']} was skipped, and nobody had {key}"


#: By name: what finds its violations, and the precondition.
RERUN_INVARIANTS: Final[dict[str, tuple[Any, Any]]] = {
    "never again": (
        _never_again,
        lambda reruns: reruns.parks and any(len(start) > 1 for start in reruns.starts()),
    ),
    "stays parked": (_stays_parked, Reruns.has_parked),
    "kept messages": (
        _kept_messages,
        lambda reruns: any(_messages(entry.item) for _, _, entry in reruns.steps()),
    ),
    "ends visibly": (_ends_visibly, lambda reruns: bool(reruns.history.of("Parked"))),
    "decided": (
        _decided,
        lambda reruns: any(
            each.details["written"] and each.details["done"] is not None for each in reruns.history.of("resolved")
        ),
    ),
    "asked first": (_asked_first, lambda reruns: reruns.recovers and bool(reruns.history.of("asked"))),
    "one effect": (
        _one_effect,
        lambda reruns: reruns.recovers and bool(reruns.history.of("asked")) and bool(reruns.history.of("charged")),
    ),
    "settled": (
        _settled,
        lambda reruns: reruns.recovers and any("settled_at" in entry.item for _, _, entry in reruns.steps()),
    ),
    "skipped in vain": (
        _not_skipped,
        lambda reruns: reruns.history.task == "recovers-skips" and bool(reruns.history.of("Skipped")),
    ),
}
