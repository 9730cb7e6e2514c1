"""Random sequences of calls: each answer of a store, and the record that it leaves, compared with the model's.

A seed plays the same sequence again.  A sequence that fails is shortened before it is shown.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from math import floor
from typing import Any, ClassVar, Final

from idempotent_tasks.core.records import (
    MAX_PARKED_BYTES,
    Claim,
    ClaimRequest,
    Granted,
    KeptSteps,
    Lost,
    Outcome,
    Record,
    Renewed,
    Status,
    Step,
    reservation_owner,
    step_id,
)
from idempotent_tasks.core.store import MOST_NOTED, ParkingStore, SteppingStore, Store
from idempotent_tasks.errors import RecordNotFoundError
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance import model
from idempotent_tasks.testing.conformance.base import Conformance
from idempotent_tasks.testing.conformance.model import Permitted

__all__ = ["SequenceConformance", "failing_sequence"]

#: Two: a write to one key must leave the other alone.
_KEYS: Final = ("shop.charge#1", "shop.charge#2")
_LEASES: Final = (0.25, 5.0, 30.0, 900.0)
_RETENTIONS: Final = (1.0, 40.0, 3600.0)
_SETTLES: Final = (0.0, 0.0, 0.0, 0.25, 20.0)
_PAYLOADS: Final = (None, None, "p", "p", "q")
_EXPRESSIONS: Final = (None, "x", "x", "y")
_TASK_IDS: Final = ("id-1", "id-2")
_TOKENS: Final = ("one", "two", "three", "0", "1")
#: The start that the times of a step's records are written for, in epoch milliseconds.
_EPOCH: Final = 1_000_000_000_000
#: Some epoch milliseconds: a store keeps them and looks at none.
_DUE: Final = 1_800_000_000_000
#: Small ones, one that is half of what a record takes, and one more and one less than there is room for.
_MESSAGES: Final = (
    b"\x00",
    b"one",
    b"two",
    b"h" * (MAX_PARKED_BYTES // 2),
    b"l" * (MAX_PARKED_BYTES - len(_TASK_IDS[0])),
    b"l" * (MAX_PARKED_BYTES - len(_TASK_IDS[0]) + 1),
)
_OUTCOMES: Final = (
    Outcome(status=Status.COMPLETED, codec="json", data="1"),
    Outcome(status=Status.COMPLETED, codec="x", data=b"\x00", continuation="{}"),
    Outcome(status=Status.COMPLETED, codec="json", data=None, error="not stored"),
    Outcome(status=Status.FAILED, codec="json", data='"no"', error="ValueError"),
)
#: The characters of each step's result, by its name; a record has room for two of three.
_STEPS: Final = {"a": 2, "b.é": 20, "c": 1500, "d": 1500, "e": 1500, "f": 10_000}
#: What older versions know nothing of.
_COUNTING: Final = (
    "runs",
    "generation",
    "unresolved_since",
    "counted_fence",
    "previous_owner",
    "previous_task_id",
    "previous_claimed_at",
    "steps",
)
#: How often each kind of step is taken.
_WEIGHTS: Final = {
    "claim": 28,
    "commit": 12,
    "release": 11,
    "renew": 11,
    "note_deferral": 8,
    "note_dispatch": 5,
    "restore": 9,
    "get": 2,
    "forget": 3,
    "again": 14,
    "advance": 20,
}
#: The same for what only a `ParkingStore` has.
_PARKING_WEIGHTS: Final = {"park": 6, "keep_message": 8}
#: The same for what only a `SteppingStore` has.
_STEPPING_WEIGHTS: Final = {"keep_step": 16, "kept_step": 4}
#: The calls whose first argument is the key.
_BY_KEY: Final = ("get", "note_deferral", "note_dispatch", "keep_message")
#: The most entries of a map or set that a message shows, and the most bytes.
_MOST_SHOWN: Final = 12
_MOST_BYTES: Final = 40
#: The same for a text.
_MOST_CHARACTERS: Final = 300
#: The most sequences that are played to shorten one.
_MOST_PLAYS: Final = 400


class SequenceConformance(Conformance):
    """Random sequences of calls, on every edge of every expiry, compared with a model of the protocol.

    They need a store whose time stands still until ``idempotency_clock`` is moved, to the millisecond.
    """

    #: One sequence each; empty for a store whose clock cannot be stopped.
    seeds: ClassVar[Iterable[int]] = range(50)
    #: How many steps a sequence has.
    steps: ClassVar[int] = 60

    def test_random_sequence(self, store: Store, idempotency_clock: FakeClock, seed: int) -> None:
        """Each answer, and the record after it, is one that the protocol permits."""
        failure = failing_sequence(
            seed, store, idempotency_clock, lambda key: self.forget(store, key), steps=self.steps
        )
        if failure is not None:
            raise AssertionError(failure)

    def arguments(self) -> Mapping[str, Mapping[str, object]]:
        """Return the values of the tests' arguments, by their ids."""
        return {**super().arguments(), "seed": {str(seed): seed for seed in self.seeds}}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    """The claim that a step is about: one that was granted to the owner of a request, or one that nobody has seen."""

    request: ClaimRequest
    #: Which of its grants and renewals, from 0; the last one if there are fewer; None for `Claim.unseen`.
    version: int | None = None
    #: Whether it is the claim of whoever holds the key, as an operator sees it (`Claim.shown_by`).
    shown: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    """The steps that the holder of a claim knows of, and of a repeated call, those before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """One call of the store, or a move of the clock."""

    name: str
    key: str = ""
    #: The call's arguments: a `_Held` stands for a claim, a `_Known` for its steps; a record is that of a sequence that
    #: begins at `_EPOCH`.
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    milliseconds: int = 0

    def text(self, start: int) -> str:
        """Return the step as it is taken in a sequence that began at ``start`` (epoch milliseconds)."""
        if self.name == "advance":
            return f"{self.milliseconds / 1000:+} s"
        given = [_brief(_moved(each, start - _EPOCH) if isinstance(each, Record) else each) for each in self.arguments]
        given += [f"{name}={each!r}" for name, each in self.options.items()]
        return f"{self.name}({', '.join([repr(self.key), *given])})"


@dataclass(frozen=True, slots=True)
class _Difference:
    """What a store did that the protocol does not permit."""

    answer: object
    found: Record | None
    permitted: Sequence[Permitted]

    def __str__(self) -> str:
        lines = [f"answered  {_brief(self.answer)}", f"and left  {_brief(self.found)}"]
        for each in self.permitted:
            later = " (its expiration may be a little later)" if each.kept_anew else ""
            lines.append(f"permitted {_brief(each.answer)}")
            lines.append(f"and       {_compared(each.record, self.found)}{later}")
        return "\n".join(lines)


class _Play:
    """One sequence of steps on a store whose records of the keys are deleted first.

    Args:
        store: what is tested.
        clock: its time.
        forget: deletes a record.
    """

    def __init__(self, store: Store, clock: FakeClock, forget: Callable[[str], None]) -> None:
        self._store = store
        self._clock = clock
        self._forget = forget
        #: What the model says of each key.
        self.records: dict[str, Record | None] = dict.fromkeys(_KEYS)
        #: Of each key and owner, the claims that were granted and renewed.
        self.claims: dict[tuple[str, str], list[Claim]] = {}
        self._beside = _StepsBeside()
        for key in _KEYS:
            forget(key)
        #: When it began, in epoch milliseconds.
        self.start = (floor(clock.now()) + 1) * 1000
        self._move_to(self.start)
        seen, shown = store.clock.now(), clock.now()
        if abs(seen - shown) > 0.001:
            raise AssertionError(f"the store's clock shows {seen}, and idempotency_clock {shown}")

    @property
    def parks(self) -> bool:
        """Whether the store can park keys."""
        return isinstance(self._store, ParkingStore)

    @property
    def keeps_steps(self) -> bool:
        """Whether the store keeps the steps of bodies."""
        return isinstance(self._store, SteppingStore)

    @property
    def now(self) -> int:
        """The time in epoch milliseconds."""
        return floor(self._clock.now() * 1000)

    def take(self, step: _Step) -> _Difference | None:
        """Take a step; return how the store differs from the model then."""
        if step.name == "advance":
            self._move_to(self.now + step.milliseconds)
            return None
        old, arguments = self.records[step.key], tuple(self._resolved(step, each) for each in step.arguments)
        answer = self._call(step, arguments)
        found = self._read(step.key)
        if step.name == "forget":
            permitted: Sequence[Permitted] = [Permitted(None, None)]
        elif step.name == "kept_step":
            permitted = [Permitted(self._beside.expected(old, *arguments, otherwise=answer), old)]
        else:
            permitted = getattr(model, step.name)(old, self._clock.now(), *arguments, **step.options)
        if step.name == "keep_step":
            held, name, content, _ = arguments
            permitted = self._beside.kept(old, held, name, content, permitted)
        if isinstance(answer, Granted | Renewed):
            versions = self.claims.setdefault((step.key, answer.claim.owner), [])
            if answer.claim not in versions:
                versions.append(answer.claim)
        if not any(each.fits(answer, found) for each in permitted):
            return _Difference(answer, found, permitted)
        self.records[step.key] = found
        return None

    def untouched(self) -> _Difference | None:
        """Return how a key that was not written to differs from what it was."""
        for key in _KEYS:
            found, wanted = self._read(key), self.records[key]
            if found != wanted:
                return _Difference(found, found, [Permitted(wanted, wanted)])
        return None

    def _resolved(self, step: _Step, argument: Any) -> Any:
        if isinstance(argument, Record):
            return _moved(argument, self.start - _EPOCH)
        if isinstance(argument, _Known):
            held, name, *_ = step.arguments
            return self._known(step.key, self._claim_of(step.key, held), name)
        return self._claim_of(step.key, argument) if isinstance(argument, _Held) else argument

    def _known(self, key: str, held: Claim, name: str) -> KeptSteps:
        record = self.records[key]
        if record is None or record.owner != held.owner:
            return held.steps
        others = {each: step for each, step in record.steps.here.items() if each != name}
        return KeptSteps(here=others, elsewhere=record.steps.elsewhere - {step_id(name)})

    def _claim_of(self, key: str, argument: _Held) -> Claim:
        record = self.records[key]
        # Nobody holds a key that is parked.
        if argument.shown and record is not None and record.owner is not None and record.parked_at is None:
            return Claim.shown_by(record, argument.request.settle_seconds)
        versions = self.claims.get((key, argument.request.owner), [])
        if argument.version is None or not versions:
            return Claim.unseen(argument.request)
        return versions[min(argument.version, len(versions) - 1)]

    def _call(self, step: _Step, arguments: tuple[Any, ...]) -> object:
        try:
            if step.name == "forget":
                return self._forget(step.key)
            key = (step.key,) if step.name in _BY_KEY else ()
            return getattr(self._store, step.name)(*key, *arguments, **step.options)
        except Exception as error:  # noqa: BLE001 - whatever a store raises is its answer
            return type(error)

    def _read(self, key: str) -> Record | None:
        try:
            return self._store.get(key)
        except RecordNotFoundError:
            return None

    def _move_to(self, milliseconds: int) -> None:
        # A quarter past, so that no rounding of a float gives the millisecond before.
        self._clock.advance((milliseconds + 0.25) / 1000 - self._clock.now())


class _StepsBeside:
    """The steps that stores keep beside their records."""

    def __init__(self) -> None:
        #: By key, generation and name: the fence of the claim that has kept a step, and the step.
        self._steps: dict[tuple[str, int, str], tuple[int, Step]] = {}
        #: The latest fence of a claim that has tried it.
        self._tried: dict[tuple[str, int, str], int] = {}

    def kept(
        self, record: Record | None, held: Claim, name: str, step: Step, permitted: Sequence[Permitted]
    ) -> Sequence[Permitted]:
        """Note a call that keeps a step, and return what it may come to, by what the model says of the record."""
        place, (usual,) = (held.key, held.generation, name), permitted
        latest = self._tried.get(place, 0)
        self._tried[place] = max(latest, held.fence)
        steps = usual.answer
        if isinstance(steps, KeptSteps) and record is not None:
            is_new = name not in record.steps and name not in steps.here and record.generation == held.generation
            if latest > held.fence and name not in record.steps:
                # A record that was restored may have a claim that is older than a step beside it.
                self._steps.pop(place, None)
                return [usual, Permitted(Lost(), record)]
            if is_new:
                self._steps[place] = (held.fence, step)
                return permitted
        # A claim of an earlier time may still reach what is beside the record of that time.
        fence, others = self._steps.get(place, (held.fence + 1, step))
        if fence <= held.fence and others != step:
            del self._steps[place]
        return permitted

    def expected(self, record: Record | None, held: Claim, name: str, *, otherwise: object) -> object:
        """Return what reading a step must find; ``otherwise`` where the record does not name it."""
        if record is None or record.generation != held.generation or step_id(name) not in record.steps.elsewhere:
            return otherwise
        return self._steps.get((held.key, held.generation, name), (0, otherwise))[1]


class _Author:
    """Chooses a sequence's steps, one after the other, by what the model says of the keys.

    Args:
        rng: decides.
        play: the sequence so far.
    """

    def __init__(self, rng: random.Random, play: _Play) -> None:
        self._rng = rng
        self._play = play
        self._weights = _WEIGHTS | (_PARKING_WEIGHTS if play.parks else {})
        self._weights |= _STEPPING_WEIGHTS if play.keeps_steps else {}
        self._requests = {key: [*self._deliveries(key), *self._reservations(key)] for key in _KEYS}
        self._taken: list[_Step] = []
        self._planned: list[_Step] = []
        self._seen: dict[str, list[Record]] = {key: [] for key in _KEYS}

    def steps(self, count: int) -> Iterator[_Step]:
        """Yield the steps; each is chosen after the one before was taken."""
        for _ in range(count):
            key = self._rng.choices(_KEYS, (5, 1))[0]
            record = self._play.records[key]
            if record is not None:
                self._seen[key].append(record)
            [kind] = self._rng.choices(list(self._weights), list(self._weights.values()))
            step: _Step = self._planned.pop() if self._planned else getattr(self, f"_{kind}")(key)
            self._taken.append(step)
            yield step

    def _deliveries(self, key: str) -> Iterator[ClaimRequest]:
        for owner in "abcd":
            yield ClaimRequest(
                key=key,
                owner=owner,
                lease_seconds=self._rng.choice(_LEASES),
                retention_seconds=self._rng.choice(_RETENTIONS),
                validation=self._rng.choice(_PAYLOADS),
                validated_by=self._rng.choice(_EXPRESSIONS),
                task="shop.charge",
                task_id=self._rng.choice((*_TASK_IDS, f"id-{owner}")),
                worker="worker@host",
                process=self._rng.choice((None, "host/1@2")),
                unresolved_seconds=self._rng.choice((None, *_RETENTIONS)),
                locks=self._rng.random() < 0.1,
                settle_seconds=self._rng.choice(_SETTLES),
            )

    def _reservations(self, key: str) -> Iterator[ClaimRequest]:
        for task_id in _TASK_IDS:
            yield ClaimRequest(
                key=key,
                owner=reservation_owner(task_id),
                lease_seconds=self._rng.choice(_LEASES),
                retention_seconds=self._rng.choice(_RETENTIONS),
                validation=self._rng.choice(_PAYLOADS),
                task_id=task_id,
                stands_in_until=self._rng.choice((None, _DUE)),
            )

    def _request(self, key: str) -> ClaimRequest:
        """Return the holder's request more often than another."""
        record = self._play.records[key]
        held = [each for each in self._requests[key] if record is not None and each.owner == record.owner]
        return self._rng.choice(held if held and self._rng.random() < 0.7 else self._requests[key])

    def _held(self, key: str) -> _Held:
        request = self._request(key)
        versions = len(self._play.claims.get((key, request.owner), []))
        if self._rng.random() < 0.15 or not versions:
            return _Held(request=request, shown=self._rng.random() < 0.3)
        return _Held(request=request, version=self._rng.choice((versions - 1, self._rng.randrange(versions))))

    def _claim(self, key: str) -> _Step:
        return _Step(name="claim", key=key, arguments=(self._rng.choice(self._requests[key]),))

    def _commit(self, key: str) -> _Step:
        arguments = (self._held(key), self._rng.choice(_OUTCOMES), self._rng.choice(_RETENTIONS))
        return _Step(name="commit", key=key, arguments=arguments)

    def _release(self, key: str) -> _Step:
        held = self._held(key)
        options = {
            "crashed": self._rng.random() < 0.3,
            # Only a process that knows the request knows that its body never began.
            "began": held.shown or self._rng.random() < 0.7,
            "nothing_done": self._rng.random() < 0.2,
        }
        return _Step(name="release", key=key, arguments=(held, "ValueError"), options=options)

    def _renew(self, key: str) -> _Step:
        arguments = (self._held(key), self._rng.choice(_LEASES), self._rng.choice(_RETENTIONS))
        return _Step(name="renew", key=key, arguments=arguments)

    def _park(self, key: str) -> _Step:
        held = self._held(key)
        # Only a run is parked: neither a reservation nor a lock.
        is_run = held.request.is_for_run and not held.shown
        return _Step(name="park", key=key, arguments=(held, "Rerun")) if is_run else self._claim(key)

    def _keep_step(self, key: str) -> _Step:
        record, held = self._play.records[key], self._held(key)
        names = [name for name in _STEPS if record is None or name not in record.steps]
        if held.version is None or not names:
            # Only who has seen its claim has a body.
            return self._claim(key)
        name = self._rng.choice(names)
        arguments = (held, name, _step_of(held.request.owner, name), _Known())
        return _Step(name="keep_step", key=key, arguments=arguments)

    def _kept_step(self, key: str) -> _Step:
        record, held = self._play.records[key], self._held(key)
        if held.version is None:
            return self._claim(key)
        beside = [name for name in _STEPS if record is not None and step_id(name) in record.steps.elsewhere]
        return _Step(name="kept_step", key=key, arguments=(held, self._rng.choice(beside or list(_STEPS))))

    def _keep_message(self, key: str) -> _Step:
        return _Step(name="keep_message", key=key, arguments=(self._rng.choice(_TASK_IDS), self._rng.choice(_MESSAGES)))

    def _note_deferral(self, key: str) -> _Step:
        past = self._rng.sample([str(number) for number in range(12)], self._rng.choice((0, 1, 12)))
        arguments = (self._request(key).owner, self._rng.choice(_TOKENS), _DUE + self._rng.randrange(3), past)
        return _Step(name="note_deferral", key=key, arguments=arguments)

    def _note_dispatch(self, key: str) -> _Step:
        return _Step(name="note_dispatch", key=key, arguments=(self._rng.choice(_TOKENS),))

    def _get(self, key: str) -> _Step:
        return _Step(name="get", key=key)

    def _forget(self, key: str) -> _Step:
        return _Step(name="forget", key=key)

    def _again(self, key: str) -> _Step:
        """Repeat a call, as after an answer that was lost, or one that was long on its way."""
        calls = [step for step in self._taken if step.key == key and step.name != "forget"]
        if not calls:
            return self._claim(key)
        return self._rng.choice((calls[-1], calls[-1], self._rng.choice(calls)))

    def _advance(self, key: str) -> _Step:
        """Move to an edge of the record's expiries, or by a little."""
        now, record = self._play.now, self._play.records[key]
        moves = [0, 1, 125, 1000, 2000, 2001, 3000]
        # No calendar has the day after a parked key's last one.
        if record is not None and record.parked_at is None:
            edges = [record.in_progress_expiration or 0, record.expiration * 1000, record.expiration * 1000 + 1000]
            moves += [edge + off - now for edge in edges for off in (-1, 0, 1)] * 2
        return _Step(name="advance", key=key, milliseconds=self._rng.choice([move for move in moves if move >= 0]))

    def _restore(self, key: str) -> _Step:
        records = [*self._seen[key][-2:], self._of_us(key), self._of_us(key), self._of_others(key)]
        record = _moved(self._rng.choice(records), _EPOCH - self._play.start)
        step = _Step(name="restore", key=key, arguments=(record,))
        if self._play.records[key] is None or self._rng.random() < 0.3:
            return step
        # Over another record little can happen.
        self._planned.append(step)
        return self._forget(key)

    def _of_us(self, key: str) -> Record:
        """Return a record as this version writes it: in progress or finished, with as many notes as it may have."""
        now, request = self._play.now / 1000, self._rng.choice(self._requests[key])
        count = self._rng.choice((0, 1, MOST_NOTED - 1, MOST_NOTED))
        granted = model.claim(None, now, request)[0]
        assert isinstance(granted.answer, Granted)
        assert granted.record is not None
        if self._rng.random() < 0.5:
            return replace(granted.record, deferred={str(number): _DUE for number in range(count)})
        outcome = self._rng.choice(_OUTCOMES)
        finished = model.commit(granted.record, now, granted.answer.claim, outcome, request.retention_seconds)[0].record
        assert finished is not None
        messages = self._rng.sample((b"one", b"two"), self._rng.choice((0, 0, 1, 2)))
        return replace(
            finished,
            dispatched=frozenset(str(number) for number in range(count)),
            # Of a key that was parked before, they are yet to be published again.
            parked=dict(zip(_TASK_IDS, messages, strict=False)),
            parked_bytes=sum(len(each) + len(_TASK_IDS[0]) for each in messages),
            resolved_fence=finished.fence if messages else None,
        )

    def _of_others(self, key: str) -> Record:
        """Return a record of Powertools, or one that an older version of this library has released."""
        request, expiration = self._request(key), self._play.now // 1000 + self._rng.choice((2, 600))
        ends = self._play.now + self._rng.choice((-1, 0, 1, 5000))
        foreign = Record(key=key, status=Status.INPROGRESS, expiration=expiration, validation=request.validation)
        left = KeptSteps(here={"a": _step_of(request.owner, "a")} if self._play.keeps_steps else {})
        return self._rng.choice(
            (
                foreign,
                replace(foreign, in_progress_expiration=ends),
                replace(foreign, status=Status.COMPLETED, in_progress_expiration=ends, data="1"),
                # Its last write keeps the attributes that it does not know.
                replace(foreign, status=Status.COMPLETED, data="1", owner=request.owner, fence=7, attempt=1),
                replace(foreign, status=Status.COMPLETED, data="1", owner=request.owner, fence=7, steps=left),
                replace(foreign, in_progress_expiration=0, fence=7, attempt=2, owner=request.owner),
                replace(foreign, in_progress_expiration=0, fence=7, error="ValueError"),
                *self._of_older_versions(key, request),
            )
        )

    def _of_older_versions(self, key: str, request: ClaimRequest) -> Iterator[Record]:
        """Yield records in progress of a version that counts no runs: on an empty key, and over what is there."""
        now = self._play.now
        first = Record(
            key=key,
            status=Status.INPROGRESS,
            expiration=now // 1000 + 600,
            in_progress_expiration=now + 5000,
            owner=request.owner,
            fence=now,
            attempt=self._rng.choice((0, 1)),
            task_id=request.task_id,
            claimed_at=now,
        )
        yield first
        # None is granted a key that is parked.
        for seen in [each for each in self._seen[key][-1:] if each.parked_at is None]:
            # Its writes keep the attributes that it does not know.
            yield replace(first, **{name: getattr(seen, name) for name in _COUNTING}, fence=seen.fence + 1)


def failing_sequence(
    seed: int,
    store: Store,
    clock: FakeClock,
    forget: Callable[[str], None],
    *,
    steps: int = 60,
    shorten: bool = True,
) -> str | None:
    """Play a random sequence of calls, and return the shortest failing part of it as text; None if none fails.

    Args:
        seed: decides the sequence.
        store: what is tested; its time stands still until ``clock`` is moved.
        clock: its time.
        forget: deletes a key's record.
        steps: how many steps the sequence has.
        shorten: whether to look for a shorter part that fails too.
    """
    play, taken = _Play(store, clock, forget), []
    difference = None
    for step in _Author(random.Random(seed), play).steps(steps):
        taken.append(step)
        difference = play.take(step)
        if difference is not None:
            break
    difference = difference or play.untouched()
    if difference is None:
        return None
    shortest = _Failure(steps=taken, start=play.start, difference=difference)
    if shorten:
        shortest = _shortened(shortest, lambda: _Play(store, clock, forget))
    played = "\n".join(f"    {step.text(shortest.start)}" for step in shortest.steps)
    return f"seed {seed}, {len(shortest.steps)} of its first {len(taken)} steps:\n{played}\n{shortest.difference}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Failure:
    """A sequence after which store and model differ."""

    steps: list[_Step]
    #: When it began, in epoch milliseconds.
    start: int
    difference: _Difference


def _shortened(failure: _Failure, play: Callable[[], _Play]) -> _Failure:
    """Leave out steps, many at a time and then one by one, as long as store and model still differ in the end."""
    plays, size = 0, len(failure.steps) // 2
    while size and plays < _MOST_PLAYS:
        place, before = 0, failure
        while place < len(failure.steps) and plays < _MOST_PLAYS:
            shorter = _first_failure(failure.steps[:place] + failure.steps[place + size :], play())
            plays += 1
            if shorter is None:
                place += size
            else:
                failure = shorter
        if size > 1 or failure is before:
            size //= 2
    return failure


def _first_failure(steps: list[_Step], play: _Play) -> _Failure | None:
    """Return the beginning of a sequence up to the first difference; None if there is none."""
    for count, step in enumerate(steps, start=1):
        difference = play.take(step)
        if difference is not None:
            return _Failure(steps=steps[:count], start=play.start, difference=difference)
    difference = play.untouched()
    return None if difference is None else _Failure(steps=steps, start=play.start, difference=difference)


def _step_of(owner: str, name: str) -> Step:
    """Return the outcome of a step, as this owner's claims keep it."""
    size = _STEPS[name]
    if size < _MOST_BYTES:
        return Step(inputs=owner, codec="x", data=owner.encode() * size)
    return Step(inputs=owner, codec="json", data=owner[0] * size)


def _moved(record: Record, milliseconds: int) -> Record:
    """Return a record with all its times moved, and its fences and generation, which begin as one; 0 is no time."""

    def moved(time: int | None) -> int | None:
        return time and time + milliseconds

    if record.parked_at is None:
        # A parked key's do not depend on when it was parked.
        record = replace(
            record,
            expiration=record.expiration + milliseconds // 1000,
            in_progress_expiration=moved(record.in_progress_expiration),
        )
    return replace(
        record,
        parked_at=moved(record.parked_at),
        settled_at=moved(record.settled_at),
        claimed_at=moved(record.claimed_at),
        completed_at=moved(record.completed_at),
        fence=record.fence + milliseconds if record.completed_at or record.claimed_at else record.fence,
        counted_fence=moved(record.counted_fence),
        resolved_fence=moved(record.resolved_fence),
        generation=moved(record.generation),
        unresolved_since=moved(record.unresolved_since),
        previous_claimed_at=moved(record.previous_claimed_at),
    )


def _compared(wanted: Record | None, found: Record | None) -> str:
    """Return a record as text: what it has and another has not."""
    if wanted is None or found is None or wanted == found:
        return "that record" if wanted == found else _brief(wanted)
    differing = (each.name for each in fields(wanted) if getattr(wanted, each.name) != getattr(found, each.name))
    return f"that record with {', '.join(f'{name}={_brief(getattr(wanted, name))}' for name in differing)}"


def _brief(value: object) -> str:
    """Return a value as text, of a dataclass only what differs from the defaults."""
    if isinstance(value, _Held):
        if value.shown:
            return "the holder's claim"
        which = "the unseen claim" if value.version is None else f"claim {value.version}"
        return f"{which} of {value.request.owner!r}"
    if isinstance(value, Mapping | frozenset | bytes):
        return _brief_content(value)
    if isinstance(value, type) or not is_dataclass(value):
        return _brief_scalar(value)
    given = [
        f"{each.name}={_brief(content)}"
        for each in fields(value)
        if (content := getattr(value, each.name)) != each.default
        if each.name != "key"
        if each.default_factory is MISSING or content != each.default_factory()
    ]
    return f"{type(value).__name__}({', '.join(given)})"


def _brief_scalar(value: object) -> str:
    """Return a value without fields as text; of a long text only how long it is."""
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        return f"<{len(value)} characters>"
    return value.__name__ if isinstance(value, type) else str(value) if isinstance(value, Status) else repr(value)


def _brief_content(value: "Mapping[str, object] | frozenset[str] | bytes") -> str:
    """Return notes, messages or one message as text; of much only how much it is."""
    if isinstance(value, bytes):
        return repr(value) if len(value) <= _MOST_BYTES else f"<{len(value)} bytes>"
    if len(value) > _MOST_SHOWN:
        return f"<{len(value)} entries>"
    if isinstance(value, frozenset):
        return repr(value)
    return f"{{{', '.join(f'{name!r}: {_brief(each)}' for name, each in value.items())}}}"
