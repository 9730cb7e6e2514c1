"""A second checker, which reads only what the callers of the store saw.

A key is a register with claims.  The calls of a history must be explained by some order in which each took effect at
one moment between its start and its answer, as the protocol allows; one without an answer, at any later moment or
never.  The search for that order is Wing and Gong's, with Lowe's memory of what was tried: "Testing for
linearizability", Concurrency and Computation 29 (4), 2017.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from idempotent_tasks.core.records import (
    Busy,
    Claim,
    Committed,
    Finished,
    Granted,
    KeptSteps,
    Lost,
    Mismatch,
    Parked,
    Record,
    Released,
    Renewed,
    Status,
    Superseded,
    Vanished,
    WritesRefused,
    reservation_owner,
    step_id,
)
from simulation.calls import Call
from simulation.scheduler import CLOCK_SECONDS

__all__ = ["Register", "is_linearizable", "unexplained"]


@dataclass(frozen=True, slots=True)
class Register:
    """What a key holds."""

    exists: bool = False
    #: Of the claim, of the outcome, or of a parked key; None when the key was released.
    owner: str | None = None
    #: None if only a claim without an answer has begun to count.
    fence: int | None = None
    #: Between which times the claim expires, or a free key has settled, in epoch seconds.
    expires_from: float = 0.0
    expires_by: float = 0.0
    #: The outcome's data, in a tuple; None while there is no outcome.
    outcome: tuple[Any] | None = None
    #: Whether its next run waits for a person, whose decision is no call.
    parked: bool = False
    #: Of each step that is kept: its `step_id`.
    steps: frozenset[str] = frozenset()

    @property
    def is_held(self) -> bool:
        """Whether somebody has claimed the key and neither released, finished nor parked it."""
        return self.owner is not None and self.outcome is None and not self.parked

    @property
    def is_claimable_in_time(self) -> bool:
        """Whether the key is held, or free and yet to settle: each ends by itself."""
        return self.exists and self.outcome is None and not self.parked


#: What a call may do: not before a time, not after one, and what the register is then.
Effect = tuple[float, float, Register]


def effects(register: Register, call: Call) -> Iterator[Effect]:
    """Yield what a call with this answer may have done, and without an answer whatever it can have changed."""
    match call.method:
        case "claim":
            yield from _claim_effects(register, call)
        case "commit" | "commit_with":
            yield from _commit_effects(register, call)
        case "release":
            yield from _release_effects(register, call)
        case "renew":
            yield from _renew_effects(register, call)
        case "park":
            yield from _park_effects(register, call)
        case "keep_step":
            yield from _keep_effects(register, call)
        case _:
            # A restored record returns nothing: it may have been written.
            if not register.exists:
                yield -inf, inf, Register(True, call.owner, outcome=(call.data,))


def _claim_effects(register: Register, call: Call) -> Iterator[Effect]:
    match call.answer:
        case Granted(claim) if register.outcome is None and not register.parked:
            yield from _grants(register, call, claim)
        case None if register.outcome is None and not register.parked:
            yield from _unseen_grants(register, call)
        case Finished() | Busy() | Parked() | Mismatch():
            yield from _refusal_effects(register, call)


def _refusal_effects(register: Register, call: Call) -> Iterator[Effect]:
    match call.answer:
        case Finished(record):
            if register.outcome == (record.data,):
                yield -inf, inf, register
        case Busy(_, holder):
            if register.is_claimable_in_time and holder.owner == register.owner:
                yield -inf, register.expires_by + CLOCK_SECONDS, register
        case Parked(record):
            if register.parked and record.owner == register.owner:
                yield -inf, inf, register
        case Mismatch():
            # Payloads are not in the register.
            if register.owner is not None:
                yield -inf, inf, register


def _grants(register: Register, call: Call, claim: Claim) -> Iterator[Effect]:
    # An earlier request of the same owner was granted; or this one is.
    if register.is_held and register.owner == call.owner and register.fence in (None, claim.fence):
        yield -inf, inf, _prolonged(register, claim)
    if register.fence in (None, claim.fence - 1) and _steps_of(claim) == register.steps:
        granted = Register(True, call.owner, claim.fence, claim.expires_at, claim.expires_at, steps=register.steps)
        yield _claimable_from(register, call), inf, granted


def _unseen_grants(register: Register, call: Call) -> Iterator[Effect]:
    fence, (earliest, latest) = None if register.fence is None else register.fence + 1, _expiry(call)
    granted = Register(True, call.owner, fence, earliest, latest, steps=register.steps)
    yield _claimable_from(register, call), inf, granted
    if register.is_held and register.owner == call.owner:
        # It prolongs an earlier request's claim, if that is too short.
        yield -inf, inf, replace(register, expires_from=earliest, expires_by=max(register.expires_by, latest))


def _claimable_from(register: Register, call: Call) -> float:
    """Return from when on a claim is granted: at any time where a reservation for its task holds the key.

    Else when the claim that holds it has expired, or what was released has settled.
    """
    is_reserved = register.is_held and register.owner == reservation_owner(call.task_id)
    return register.expires_from - CLOCK_SECONDS if register.exists and not is_reserved else -inf


def _steps_of(claim: Claim) -> frozenset[str]:
    return claim.steps.elsewhere | {step_id(name) for name in claim.steps.here}


def _prolonged(register: Register, claim: Claim) -> Register:
    return replace(register, fence=claim.fence, expires_from=claim.expires_at, expires_by=claim.expires_at)


def _expiry(call: Call) -> tuple[float, float]:
    """Return between which times a claim or renewal without an answer expires."""
    latest = inf if call.ended_at is None else call.ended_at
    return call.called_at + call.lease_seconds, latest + call.lease_seconds


def _commit_effects(register: Register, call: Call) -> Iterator[Effect]:
    outcome = (call.data,)
    committed = replace(register, outcome=outcome)
    mine = register.exists and register.owner == call.owner
    match call.answer:
        case Committed():
            if mine and register.outcome in (None, outcome):
                yield -inf, inf, committed
        case Superseded(record):
            if register.exists and not mine and _shows(register, record):
                yield -inf, inf, register
        case Vanished():
            if not register.exists:
                yield -inf, inf, register
        case WritesRefused():
            if mine and register.outcome is None:
                yield -inf, inf, register
        case None if mine and register.outcome is None:
            yield -inf, inf, committed


def _shows(register: Register, record: Record) -> bool:
    """Return whether a record is what the register holds."""
    if record.status is Status.INPROGRESS:
        return register.outcome is None and record.owner == register.owner
    return register.outcome == (record.data,)


def _release_effects(register: Register, call: Call) -> Iterator[Effect]:
    mine = register.is_held and register.owner == call.owner
    # At once, where nothing has to settle.
    latest = inf if call.ended_at is None else call.ended_at
    settles = (call.called_at + call.lease_seconds, latest + call.lease_seconds) if call.lease_seconds else (0.0, 0.0)
    released = replace(register, owner=None, expires_from=settles[0], expires_by=settles[1])
    is_free = register.exists and register.owner is None
    match call.answer:
        case Released():
            if mine:
                yield -inf, inf, released
            elif is_free and register.fence in (None, call.fence):
                yield -inf, inf, register
        case Lost():
            if not mine and not (is_free and register.fence == call.fence):
                yield -inf, inf, register
            elif mine and not call.fence:
                # The answer is that to a second copy of the request, which does not know the claim by its fence.
                yield -inf, inf, released
        case None if mine:
            yield -inf, inf, released


def _renew_effects(register: Register, call: Call) -> Iterator[Effect]:
    mine = register.is_held and register.owner == call.owner
    match call.answer:
        case Renewed(claim):
            if mine:
                yield -inf, inf, _prolonged(register, claim)
        case Lost():
            if not mine:
                yield -inf, inf, register
        case None if mine:
            earliest, latest = _expiry(call)
            yield -inf, inf, replace(register, expires_from=earliest, expires_by=max(register.expires_by, latest))


def _park_effects(register: Register, call: Call) -> Iterator[Effect]:
    mine, owner = register.is_held and register.owner == call.owner, f"parked after {call.owner}"
    parked = replace(register, owner=owner, parked=True, expires_from=inf, expires_by=inf)
    match call.answer:
        case Parked():
            if mine:
                yield -inf, inf, parked
            elif register.parked and register.owner == owner:
                yield -inf, inf, register
        case Lost():
            if not mine and not (register.parked and register.owner == owner):
                yield -inf, inf, register
        case None if mine:
            yield -inf, inf, parked


def _keep_effects(register: Register, call: Call) -> Iterator[Effect]:
    mine = register.is_held and register.owner == call.owner
    match call.answer:
        case KeptSteps() | None if mine:
            yield -inf, inf, replace(register, steps=register.steps | {step_id(call.data)})
        case Lost() if not mine:
            yield -inf, inf, register


def is_linearizable(calls: Sequence[Call], *, doubled: bool = False) -> bool:
    """Return whether some order of one key's calls explains what each returned.

    A call without an answer may take effect several times: its request may be on its way more than once.

    Args:
        calls: of one key.
        doubled: whether the request of a call with an answer may arrive once more, later.
    """
    answered = [call for call in calls if call.answer is not None]
    loose = [replace(call, answer=None) for call in calls if doubled or call.answer is None]
    most_fence = max((call.answer.claim.fence for call in answered if isinstance(call.answer, Granted)), default=0)
    open_ = [(0, Register(), -inf)]
    #: By which calls have taken effect and what the key holds then: the earliest time at which that can be.
    earliest: dict[tuple[int, Register], float] = {}
    while open_:
        done, register, now = open_.pop()
        waiting = [place for place in range(len(answered)) if not done >> place & 1]
        if not waiting:
            return True
        if earliest.get((done, register), inf) <= now or (register.fence or 0) > most_fence:
            continue
        earliest[done, register] = now
        by = min(_by(answered[place]) for place in waiting)
        steps = [(call, done) for call in loose] + [(answered[place], done | 1 << place) for place in waiting]
        # What was answered is tried first: it is last.
        for call, then in steps:
            for since, until, after in effects(register, call):
                at = max(now, call.called_at, since)
                if at <= min(until, by):
                    open_.append((then, after, at))
    return False


def _by(call: Call) -> float:
    """Return by when a call with an answer has taken effect."""
    return inf if call.ended_at is None else call.ended_at


def unexplained(calls: Sequence[Call], *, doubled: bool = False) -> list[str]:
    """Return the keys whose calls no order explains; ``doubled`` as for `is_linearizable`."""
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    return [key for key, own in by_key.items() if not is_linearizable(own, doubled=doubled)]
