"""Stores that are wrong by one rule each: `MemoryStore` with one change of its source, or of a rule that it uses."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import dedent
from types import FunctionType
from typing import Any, Final

from idempotent_tasks.core import records
from idempotent_tasks.core.store import Store
from idempotent_tasks.stores import memory

__all__ = ["UNLOCKED", "WRONG_STORES", "WrongStore"]


@dataclass(frozen=True, slots=True)
class WrongStore:
    """One wrong store."""

    name: str
    #: What is changed: a method of `MemoryStore`, or a function of `idempotent_tasks.core.records`.
    of: str
    #: The text in it that is replaced, which occurs once.
    old: str
    new: str

    def made(self) -> Callable[..., Store]:
        """Return the class of such a store."""
        rules, whole = _rules(), inspect.getsource(memory.MemoryStore)
        if hasattr(memory.MemoryStore, self.of):
            method = inspect.getsource(getattr(memory.MemoryStore, self.of))
            whole = whole.replace(method, self._changed(method))
        else:
            exec(self._changed(dedent(inspect.getsource(getattr(records, self.of)))), rules)
        names = {**vars(memory), **{name: rules[name] for name in _FUNCTIONS}}
        exec(whole, names)
        wrong: Callable[..., Store] = names["MemoryStore"]
        return wrong

    def _changed(self, source: str) -> str:
        assert source.count(self.old) == 1, f"{self.name}: {self.of} has not one {self.old!r}"
        return source.replace(self.old, self.new)


_FUNCTIONS: Final = [
    name for name, each in inspect.getmembers(records, inspect.isfunction) if each.__module__ == records.__name__
]


def _rules() -> dict[str, Any]:
    """Return the names of `idempotent_tasks.core.records`, its functions calling each other by this dictionary."""
    names = dict(vars(records))
    for name in _FUNCTIONS:
        function = names[name]
        names[name] = FunctionType(function.__code__, names, name, function.__defaults__)
    return names


#: At least one for each condition of each call.
WRONG_STORES: Final = (
    # Which keys are granted.
    WrongStore("grants-an-unexpired-outcome", "claimable", "record.status is not Status.INPROGRESS or", ""),
    WrongStore(
        "grants-no-expired-record", "claimable", "record is None or record.expiration < int(now)", "record is None"
    ),
    WrongStore("grants-in-the-last-second-of-a-record", "claimable", "expiration < int(now)", "expiration <= int(now)"),
    WrongStore("grants-a-second-late", "claimable", "expiration < int(now)", "expiration + 1 < int(now)"),
    WrongStore("grants-a-live-claim", "claimable", "record.in_progress_expiration < int(now * 1000)", "True"),
    WrongStore(
        "grants-in-the-last-millisecond", "claimable", "expiration < int(now * 1000)", "expiration <= int(now * 1000)"
    ),
    WrongStore(
        "grants-a-millisecond-late", "claimable", "expiration < int(now * 1000)", "expiration + 1 < int(now * 1000)"
    ),
    WrongStore("grants-no-expired-claim", "claimable", "record.in_progress_expiration < int(now * 1000)", "False"),
    WrongStore(
        "grants-without-a-time-out",
        "claimable",
        "or record.in_progress_expiration is None",
        "or (record.in_progress_expiration is None and record.owner)",
    ),
    WrongStore("grants-no-released-key", "claimable", "record.free or", ""),
    WrongStore("grants-no-reservation", "claimable", " or record.owner == reservation_owner(request.task_id)", ""),
    WrongStore(
        "grants-any-reservation",
        "claimable",
        "record.owner == reservation_owner(request.task_id)",
        '(record.owner or "").startswith("reserved")',
    ),
    WrongStore("grants-another-payload", "claimable", "_payloads_differ(record, request)", "False"),
    WrongStore(
        "refuses-an-older-payload-digest", "_payloads_differ", "None in (record.validation, request.validation) or", ""
    ),
    WrongStore(
        "compares-what-two-expressions-selected",
        "_payloads_differ",
        "or record.validated_by == request.validated_by",
        "or True",
    ),
    WrongStore(
        "compares-only-what-names-its-expression",
        "_payloads_differ",
        "None in (record.validated_by, request.validated_by)",
        "False",
    ),
    WrongStore(
        "grants-its-own-request-twice",
        "claimable",
        "if record.owner == request.owner:\n        return False",
        "",
    ),
    # What a grant writes.
    WrongStore("does-not-count-crashes", "granted_record", "live.attempt + counted", "counted"),
    WrongStore("counts-reservations", "granted_record", "int(request.is_for_run)", "int(not request.locks)"),
    WrongStore("counts-locks", "granted_record", "int(request.is_for_run)", "int(not is_reservation(request))"),
    WrongStore("keeps-the-fence", "granted_record", "old.fence + 1", "old.fence"),
    WrongStore("starts-fences-at-one", "granted_record", "and old.fence else at", "and old.fence else 1"),
    WrongStore("follows-no-fence-with-one", "granted_record", " and old.fence else at", " else at"),
    WrongStore(
        "starts-fences-anew-with-the-generation",
        "granted_record",
        "if old is not None and old.fence else at",
        "if live is not None and old.fence else at",
    ),
    WrongStore("does-not-count-runs", "granted_record", "_runs_begun(live) + counted", "counted"),
    WrongStore(
        "keeps-an-expired-generation",
        "granted_record",
        "None if old is None or old.expiration < int(now) else old",
        "old",
    ),
    WrongStore(
        "starts-a-generation-with-each-claim",
        "granted_record",
        "at if live is None or live.unresolved_since is None else live.unresolved_since",
        "at",
    ),
    WrongStore("counts-no-fence", "granted_record", "counted_fence=fence,", ""),
    WrongStore(
        "knows-of-no-older-version", "_runs_begun", "return max(live.runs + 1, live.attempt)", "return live.runs"
    ),
    WrongStore("trusts-the-runs-of-an-older-version", "_runs_begun", "live.runs + 1, live.attempt", "live.runs + 1"),
    WrongStore("counts-an-older-versions-reservation", "_runs_begun", "live.is_counted or is_first", "live.is_counted"),
    WrongStore("takes-a-first-crash-for-a-reservation", "_runs_begun", " and live.attempt == 0", ""),
    WrongStore("takes-any-reservation-for-a-first", "_runs_begun", "live.fence == live.claimed_at and ", ""),
    WrongStore("names-no-previous-owner", "granted_record", "previous_owner=live.owner,", ""),
    WrongStore("names-no-previous-task", "granted_record", "previous_task_id=live.task_id,", ""),
    WrongStore("names-no-previous-time", "granted_record", "previous_claimed_at=live.claimed_at,", ""),
    WrongStore(
        "names-a-reservation-as-a-run",
        "without_stale_previous",
        " and (claim is None or record.previous_owner != reservation_owner(claim))",
        "",
    ),
    WrongStore("names-a-run-that-never-began", "without_stale_previous", "earlier > 0 and", "record.runs > 0 and"),
    WrongStore(
        "keeps-what-is-unresolved-like-an-outcome",
        "granted_record",
        "request.kept_seconds",
        "request.retention_seconds",
    ),
    WrongStore(
        "keeps-the-data-of-an-expired-outcome",
        "granted_record",
        "status=Status.INPROGRESS,",
        "status=Status.INPROGRESS, data=old.data if old else None,",
    ),
    WrongStore(
        "keeps-notes-through-a-takeover",
        "granted_record",
        "status=Status.INPROGRESS,",
        "status=Status.INPROGRESS, deferred=old.deferred if old else {},",
    ),
    WrongStore(
        "keeps-dispatches-of-an-expired-outcome",
        "granted_record",
        "status=Status.INPROGRESS,",
        "status=Status.INPROGRESS, dispatched=old.dispatched if old else frozenset(),",
    ),
    WrongStore("forgets-the-payload", "granted_record", "validation=request.validation,", ""),
    WrongStore("forgets-what-selected-the-payload", "granted_record", "validated_by=request.validated_by,", ""),
    WrongStore(
        "forgets-until-when-a-reservation-stands-in", "granted_record", "stands_in_until=request.stands_in_until,", ""
    ),
    WrongStore(
        "leases-in-whole-seconds",
        "claim",
        "int((now + request.lease_seconds) * 1000)",
        "int(now + request.lease_seconds) * 1000",
    ),
    WrongStore(
        "expires-with-the-claim",
        "expiration_seconds",
        "max(ceil(now + retention_seconds), in_progress_expiration // 1000 + 2)",
        "ceil(now + retention_seconds)",
    ),
    WrongStore(
        "expires-too-early", "expiration_seconds", "ceil(now + retention_seconds)", "int(now + retention_seconds) - 1"
    ),
    # What a refused claim is told.
    WrongStore("is-busy-to-itself", "answer_refusal", "record.owner == request.owner and", "False and"),
    WrongStore(
        "grants-again-what-is-finished",
        "answer_refusal",
        "record.owner == request.owner and record.status is Status.INPROGRESS",
        "record.owner == request.owner",
    ),
    WrongStore("is-busy-instead-of-mismatched", "answer_refusal", "_payloads_differ(record, request)", "False"),
    # Commit and restore.
    WrongStore("commits-for-anybody", "_held", "or record.owner != claim.owner", ""),
    WrongStore(
        "commits-no-expired-claim",
        "commit",
        "if self._held(claim) is None:",
        "if self._held(claim) is None or (old.in_progress_expiration or 0) < int(now * 1000):",
    ),
    WrongStore("commits-again", "commit", "if was_committed(old, claim):", "if False:"),
    WrongStore("takes-powertools-outcome-for-its-own", "was_committed", "and record.completed_at is not None", ""),
    WrongStore(
        "never-prolongs-an-outcome",
        "commit",
        "if now - (old.completed_at or 0) / 1000 > CLOCK_TOLERANCE_SECONDS and",
        "if False and",
    ),
    WrongStore("shortens-a-prolonged-outcome", "commit", "and expiration > old.expiration", ""),
    WrongStore("keeps-notes-through-a-commit", "outcome_record", "deferred={},", ""),
    WrongStore("keeps-attempts-through-a-commit", "outcome_record", "attempt=0,", ""),
    WrongStore("keeps-runs-through-a-commit", "outcome_record", "runs=0,", ""),
    WrongStore("keeps-since-when-through-a-commit", "outcome_record", "unresolved_since=None,", ""),
    WrongStore("keeps-the-counted-fence-through-a-commit", "outcome_record", "counted_fence=None,", ""),
    WrongStore("keeps-the-previous-owner-through-a-commit", "outcome_record", "previous_owner=None,", ""),
    WrongStore("ends-the-generation-with-a-commit", "outcome_record", "runs=0,", "runs=0, generation=None,"),
    WrongStore("forgets-the-continuation", "outcome_record", "continuation=outcome.continuation,", ""),
    WrongStore("knows-of-no-vanished-record", "commit", "return Vanished()", "return Committed()"),
    WrongStore("restores-over-another", "restore", "if old is None:", "if old is None or old.owner != record.owner:"),
    WrongStore(
        "restores-over-an-expired-record",
        "restore",
        "if old is None:",
        "if old is None or old.expiration < int(self.clock.now()):",
    ),
    WrongStore("refuses-to-restore-twice", "restore", "elif not is_first_try(old, record):", "else:"),
    WrongStore(
        "takes-a-late-claim-for-a-restored-outcome", "is_first_try", "and old.status is not Status.INPROGRESS", ""
    ),
    # Release.
    WrongStore(
        "releases-for-nobody-again",
        "release",
        "Released() if was_released(self._records.get(claim.key), claim) else Lost()",
        "Lost()",
    ),
    WrongStore("takes-any-release-for-its-own", "was_released", "and 0 < record.fence == claim.fence", ""),
    WrongStore("keeps-the-owner-of-a-released-key", "released_record", "owner=None,", ""),
    WrongStore("keeps-notes-through-a-release", "released_record", "deferred={},", ""),
    WrongStore(
        "ignores-that-a-body-never-began", "released_record", "max(held.attempt - counted, 0) if not began else", ""
    ),
    WrongStore("takes-back-the-attempt-of-a-reservation", "released_record", "int(claim.request.is_for_run)", "1"),
    WrongStore(
        "takes-back-the-run-of-a-lock",
        "released_record",
        "int(claim.request.is_for_run)",
        'int(claim.owner != f"reserved for {claim.request.task_id}")',
    ),
    WrongStore("forgets-the-runs-with-a-release", "released_record", "else held.runs", "else 0"),
    WrongStore("counts-a-run-that-did-nothing", "released_record", "if nothing_done or not began", "if not began"),
    WrongStore("counts-a-run-that-never-began", "released_record", "if nothing_done or not began", "if nothing_done"),
    WrongStore(
        "names-whom-a-release-made-the-first", "released_record", "without_stale_previous(released)", "released"
    ),
    WrongStore("counts-no-crash", "released_record", "held.attempt if crashed else 0", "0"),
    WrongStore("counts-every-release-as-a-crash", "released_record", "held.attempt if crashed else 0", "held.attempt"),
    WrongStore(
        "releases-before-its-claim", "release_time", "max(int(now * 1000), claim.claimed_at)", "int(now * 1000)"
    ),
    WrongStore("releases-an-unseen-claim-too-early", "release_time", " + spread", ""),
    WrongStore("forgets-the-reason", "released_record", "error=reason,", ""),
    WrongStore("releases-an-outcome", "release", "held = self._held(claim)", "held = self._records.get(claim.key)"),
    # Settling.
    WrongStore("grants-a-settling-key", "claimable", " or record.settles_at(now)", ""),
    WrongStore("lets-nothing-settle", "settling_milliseconds", "if settles else 0", "if False else 0"),
    WrongStore("lets-a-run-settle-that-did-nothing", "settling_milliseconds", " and not nothing_done", ""),
    WrongStore("lets-a-run-settle-that-never-began", "settling_milliseconds", "began and not", "not"),
    WrongStore("lets-a-reservation-settle", "settling_milliseconds", " and claim.request.is_for_run", ""),
    WrongStore(
        "frees-a-settling-key-at-once",
        "released_record",
        "in_progress_expiration=at + settles",
        "in_progress_expiration=at",
    ),
    WrongStore("does-not-say-until-when-a-key-settles", "released_record", "at + settles if settles else None", "None"),
    # Parking.
    WrongStore(
        "parks-for-anybody", "park", "self._held(claim), self._records", "self._records.get(claim.key), self._records"
    ),
    WrongStore("parks-under-the-claims-owner", "parked_owner", "parked after {claim.owner}", "{claim.owner}"),
    WrongStore("parks-until-the-claim-ends", "parked_record", "in_progress_expiration=PARKED_UNTIL * 1000,", ""),
    WrongStore("keeps-a-parked-key-for-its-retention", "parked_record", "expiration=PARKED_UNTIL,", ""),
    WrongStore("counts-the-run-that-parks", "parked_record", "max(held.runs - counted, 0)", "held.runs"),
    WrongStore("counts-the-attempt-that-parks", "parked_record", "max(held.attempt - counted, 0)", "held.attempt"),
    WrongStore("does-not-say-why-it-parks", "parked_record", "error=reason,", ""),
    WrongStore("keeps-notes-of-a-parked-key", "parked_record", "deferred={},", ""),
    WrongStore("parks-for-nobody-again", "park", "was_parked(old, claim)", "held is not None"),
    WrongStore("takes-any-parked-key-for-its-own", "was_parked", " and record.owner == parked_owner(claim)", ""),
    WrongStore(
        "is-busy-where-it-is-parked",
        "answer_refusal",
        "if record.parked_at is None else Parked(record)",
        "if True else None",
    ),
    WrongStore(
        "names-no-run-of-a-parked-key",
        "without_stale_previous",
        "record.runs - (record.parked_at is None)",
        "record.runs - 1",
    ),
    WrongStore(
        "keeps-messages-of-any-key", "kept_message", "record is None or record.parked_at is None", "record is None"
    ),
    WrongStore("keeps-the-last-message-of-a-task", "kept_message", "if task_id in record.parked:", "if False:"),
    WrongStore("keeps-any-number-of-messages", "kept_message", "taken > MAX_PARKED_BYTES", "False"),
    WrongStore(
        "leaves-no-room-for-the-last-byte", "kept_message", "taken > MAX_PARKED_BYTES", "taken >= MAX_PARKED_BYTES"
    ),
    WrongStore("does-not-count-task-ids", "message_bytes", " + len(task_id.encode())", ""),
    WrongStore("keeps-one-message-of-all", "kept_message", "{**record.parked, task_id: message}", "{task_id: message}"),
    WrongStore("forgets-how-much-it-keeps", "kept_message", ", parked_bytes=taken", ""),
    WrongStore("forgets-messages-with-a-claim", "granted_record", "parked={} if old is None else old.parked,", ""),
    WrongStore(
        "forgets-messages-of-an-expired-outcome",
        "granted_record",
        "parked={} if old is None else old.parked,",
        "parked={} if live is None else live.parked,",
    ),
    WrongStore(
        "forgets-the-decision-with-a-claim",
        "granted_record",
        "resolved_fence=None if old is None else old.resolved_fence,",
        "",
    ),
    # Steps.
    WrongStore("keeps-steps-for-anybody", "keep_step", "self._held(claim)", "self._records.get(claim.key)"),
    WrongStore(
        "keeps-no-step-of-an-expired-claim",
        "keep_step",
        "if held is None:",
        "if held is None or (held.in_progress_expiration or 0) < int(self.clock.now() * 1000):",
    ),
    WrongStore("keeps-a-step-twice", "keep_step", "if name not in held.steps:", "if True:"),
    WrongStore(
        "keeps-all-steps-in-the-record",
        "keep_step",
        "held.steps.including(name, step)",
        "replace(held.steps, here={**held.steps.here, name: step})",
    ),
    WrongStore(
        "keeps-every-step-beside-the-record",
        "keep_step",
        "held.steps.including(name, step)",
        "replace(held.steps, elsewhere=held.steps.elsewhere | {step_item_key(claim, name)[-16:]})",
    ),
    WrongStore(
        "keeps-one-step-of-all", "keep_step", "held.steps.including(name, step)", "KeptSteps().including(name, step)"
    ),
    WrongStore(
        "keeps-steps-of-late-runs",
        "keep_step",
        "if held is None:",
        "self._steps[step_item_key(claim, name)] = step\n            if held is None:",
    ),
    WrongStore("names-a-step-that-it-has-not", "keep_step", "self._steps[step_item_key(claim, name)] = step", "pass"),
    WrongStore("mixes-generations", "_step_item_key", "#{generation}#", "#"),
    WrongStore("forgets-steps-with-a-claim", "granted_record", "steps=_steps_left(live),", ""),
    WrongStore("keeps-steps-through-an-uncounted-run", "_steps_left", " if live.is_counted else KeptSteps()", ""),
    WrongStore("forgets-steps-with-a-release", "released_record", "owner=None,", "owner=None, steps=KeptSteps(),"),
    WrongStore("forgets-steps-with-a-parked-key", "parked_record", "deferred={},", "deferred={}, steps=KeptSteps(),"),
    WrongStore("keeps-steps-through-an-outcome", "outcome_record", "steps=KeptSteps(),", ""),
    WrongStore(
        "keeps-steps-of-an-expired-record",
        "granted_record",
        "parked_bytes=0 if old is None else old.parked_bytes,",
        "parked_bytes=0 if old is None else old.parked_bytes, steps=KeptSteps() if old is None else old.steps,",
    ),
    # Renewal.
    WrongStore("renews-what-is-free", "renew", " or not held.in_progress_expiration", ""),
    WrongStore(
        "renews-no-expired-claim",
        "renew",
        "if held is None or",
        "if held is None or held.in_progress_expiration < int(self.clock.now() * 1000) or",
    ),
    WrongStore(
        "shortens-a-newer-renewal",
        "renew",
        "if until <= held.in_progress_expiration != claim.in_progress_expiration:",
        "if False:",
    ),
    WrongStore("renews-an-older-grant-to-the-same-end", "renew", "until <= held", "until < held"),
    WrongStore("never-shortens", "renew", " != claim.in_progress_expiration", ""),
    WrongStore("renews-the-claim-but-not-the-record", "renew", ", expiration=expiration", ""),
    # Notes.
    WrongStore("notes-for-another-holder", "note_deferral", " or record.owner != owner", ""),
    WrongStore("notes-beside-an-outcome", "note_deferral", " or record.status is not Status.INPROGRESS", ""),
    WrongStore("notes-for-an-expired-claim", "note_deferral", "<= int(self.clock.now() * 1000)", "<= 0"),
    WrongStore("notes-without-limit", "note_deferral", "token in record.deferred or", "True or"),
    WrongStore("notes-no-later-word", "note_deferral", "token in record.deferred or", ""),
    WrongStore("removes-all-past-notes", "note_deferral", "past[:MOST_FORGOTTEN]", "past"),
    WrongStore("makes-no-room", "note_deferral", "if name not in forgotten", ""),
    WrongStore("notes-dispatches-in-progress", "note_dispatch", " and record.status is not Status.INPROGRESS", ""),
    WrongStore("notes-dispatches-without-limit", "note_dispatch", "and len(record.dispatched) < MOST_NOTED", ""),
    WrongStore(
        "notes-only-the-last-dispatch", "note_dispatch", "record.dispatched | {task_id}", "frozenset({task_id})"
    ),
    # Reading.
    WrongStore(
        "hides-what-has-expired",
        "get",
        "return self._records[key]",
        "return self._records[key] if self._records[key].expiration >= self.clock.now() else self._records['']",
    ),
)

#: Its check and its write are two steps.
UNLOCKED: Final = WrongStore("claims-in-two-steps", "claim", "with self._lock:", "if True:")
