"""A store, and a bucket for results, that fail as planned: the crash windows of the protocol, one step at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    KeptSteps,
    Lost,
    MessageKept,
    NoRoom,
    NotParked,
    Outcome,
    Parked,
    Record,
    Released,
    Renewed,
)
from idempotent_tasks.core.records import Step as KeptStep
from idempotent_tasks.core.retry import time_left
from idempotent_tasks.core.store import ParkingStore, SteppingStore, Store
from idempotent_tasks.errors import ResultUnavailableError, StoreUnavailableError
from idempotent_tasks.testing import FakeClock

__all__ = [
    "FaultyStore",
    "MemoryBucket",
    "SlowBucket",
    "Step",
    "answers",
    "down",
    "hangs",
    "lost_answer",
    "meanwhile",
    "passes",
    "stands_still",
]

#: What happens to one call: it is handed the inner call, and may make it.
Step = Callable[[Callable[[], Any]], Any]


def passes(call: Callable[[], Any]) -> Any:
    """Let the call through."""
    return call()


def down(error: BaseException | None = None) -> Step:
    """Raise instead of calling: the step was never taken."""

    def step(call: Callable[[], Any]) -> Any:
        raise error or StoreUnavailableError("made to fail")

    return step


def hangs(clock: FakeClock, seconds: float = 2.0) -> Step:
    """Answer nothing until a client's time-out, or the time that the call has, is over."""

    def step(call: Callable[[], Any]) -> Any:
        clock.advance(min(seconds, max(time_left(), 0.0)))
        raise StoreUnavailableError("made to hang")

    return step


def lost_answer(error: BaseException | None = None) -> Step:
    """Raise after the call took effect: its answer was lost on the way."""

    def step(call: Callable[[], Any]) -> Any:
        call()
        raise error or StoreUnavailableError("made to lose the answer")

    return step


def meanwhile(action: Callable[[], Any]) -> Step:
    """Let somebody else act just before the call."""

    def step(call: Callable[[], Any]) -> Any:
        action()
        return call()

    return step


def stands_still(clock: FakeClock, seconds: float) -> Step:
    """Let so much time pass between the call and its answer: the process stood still, or the answer was slow."""

    def step(call: Callable[[], Any]) -> Any:
        answer = call()
        clock.advance(seconds)
        return answer

    return step


def answers(answer: Any) -> Step:
    """Answer without calling."""

    def step(call: Callable[[], Any]) -> Any:
        return answer

    return step


class FaultyStore:
    """A `Store` in front of another.

    Args:
        inner: the store that works.
        plan: for each method its steps, one a call; calls after the last step go through.
    """

    def __init__(self, inner: Store, **plan: Iterable[Step]) -> None:
        self.inner = inner
        #: The methods that were called, in order.
        self.calls: list[str] = []
        self._plan = {name: iter(steps) for name, steps in plan.items()}

    @property
    def clock(self) -> Clock:
        """The inner store's clock."""
        return self.inner.clock

    @property
    def max_data_bytes(self) -> int:
        """The inner store's limit, in bytes."""
        return self.inner.max_data_bytes

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Claim as planned."""
        answer: ClaimAnswer = self._take_step("claim", lambda: self.inner.claim(request))
        return answer

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """Commit as planned."""
        answer: CommitAnswer = self._take_step("commit", lambda: self.inner.commit(claim, outcome, retention_seconds))
        return answer

    def park(self, claim: Claim, reason: str) -> Parked | Lost:
        """Park as planned."""
        answer: Parked | Lost = self._take_step("park", lambda: self._parking.park(claim, reason))
        return answer

    def keep_message(self, key: str, task_id: str, message: bytes) -> MessageKept | NoRoom | NotParked:
        """Keep a message as planned."""
        kept: MessageKept | NoRoom | NotParked = self._take_step(
            "keep_message", lambda: self._parking.keep_message(key, task_id, message)
        )
        return kept

    @property
    def _parking(self) -> ParkingStore:
        assert isinstance(self.inner, ParkingStore)
        return self.inner

    def keep_step(self, claim: Claim, name: str, step: KeptStep, kept: KeptSteps) -> KeptSteps | Lost:
        """Keep a step as planned."""
        answer: KeptSteps | Lost = self._take_step(
            "keep_step", lambda: self._stepping.keep_step(claim, name, step, kept)
        )
        return answer

    def kept_step(self, claim: Claim, name: str) -> KeptStep:
        """Read a step as planned."""
        step: KeptStep = self._take_step("kept_step", lambda: self._stepping.kept_step(claim, name))
        return step

    @property
    def _stepping(self) -> SteppingStore:
        assert isinstance(self.inner, SteppingStore)
        return self.inner

    def restore(self, record: Record) -> None:
        """Restore as planned."""
        self._take_step("restore", lambda: self.inner.restore(record))

    def release(self, claim: Claim, reason: str, **how: bool) -> Released | Lost:
        """Release as planned."""
        answer: Released | Lost = self._take_step("release", lambda: self.inner.release(claim, reason, **how))
        return answer

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """Renew as planned."""
        answer: Renewed | Lost = self._take_step(
            "renew", lambda: self.inner.renew(claim, lease_seconds, retention_seconds)
        )
        return answer

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """Note as planned."""
        self._take_step("note_deferral", lambda: self.inner.note_deferral(key, owner, token, due, past))

    def note_dispatch(self, key: str, task_id: str) -> None:
        """Note as planned."""
        self._take_step("note_dispatch", lambda: self.inner.note_dispatch(key, task_id))

    def get(self, key: str) -> Record:
        """Get as planned."""
        record: Record = self._take_step("get", lambda: self.inner.get(key))
        return record

    def _take_step(self, method: str, call: Callable[[], Any]) -> Any:
        self.calls.append(method)
        return next(self._plan.get(method, iter(())), passes)(call)


class MemoryBucket:
    """A `idempotent_tasks.stores.ResultStore`.

    Args:
        above_bytes: from which size on results shall lie here.
        failures: what the next calls raise, one each; None for one that succeeds.
    """

    def __init__(self, above_bytes: int | None = None, failures: Iterable[Exception | None] = ()) -> None:
        self.above_bytes = above_bytes
        self.objects: dict[str, bytes] = {}
        #: Until when each object is wanted, in epoch seconds.
        self.expiries: dict[str, float] = {}
        #: The calls, in order.
        self.calls: list[str] = []
        self._failures: Iterator[Exception | None] = iter(failures)

    def put(self, data: bytes, expires_at: float) -> str:
        """Keep data under its digest."""
        self._take_step("put")
        address = f"s3://results/{sha256(data).hexdigest()}"
        self.objects[address] = data
        self.expiries[address] = expires_at
        return address

    def get(self, address: str) -> bytes:
        """Return it."""
        self._take_step("get")
        if address not in self.objects:
            raise ResultUnavailableError(f"its result {address} is gone")
        return self.objects[address]

    def _take_step(self, call: str) -> None:
        self.calls.append(call)
        failure = next(self._failures, None)
        if failure is not None:
            raise failure


class SlowBucket(MemoryBucket):
    """A bucket that is healthy, and takes its time for an upload."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__(above_bytes=0)
        self._wait = wait

    def put(self, data: bytes, expires_at: float) -> str:
        """Keep data, in the end."""
        self._wait()
        return super().put(data, expires_at)
