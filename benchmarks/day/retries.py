"""When the library sends a throttled request again: what its own retrying store does over one that always throttles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Final, NoReturn

from idempotent_tasks.core.records import Claim, ClaimRequest, Outcome, Status
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.errors import StoreUnavailableError

__all__ = ["Tries", "VirtualClock"]

#: How many sequences of tries of one kind are drawn.
DRAWN: Final = 300


class VirtualClock:
    """A clock that only `sleep`, and who sets `at`, moves forward."""

    def __init__(self) -> None:
        #: Seconds since the beginning.
        self.at = 0.0

    def now(self) -> float:
        """Return the seconds since the beginning, as if they were epoch seconds."""
        return self.at

    def monotonic(self) -> float:
        """Return the same."""
        return self.at

    def sleep(self, seconds: float) -> None:
        """Move forward by so many seconds."""
        self.at += seconds


class _Throttling:
    """A `Store` that throttles each write, and notes when it was sent.

    Args:
        request_seconds: from sending a request to its answer.
    """

    def __init__(self, request_seconds: float) -> None:
        self.clock = VirtualClock()
        self.sent: list[float] = []
        self._seconds = request_seconds

    def _throttle(self, *_: Any, **__: Any) -> NoReturn:
        self.sent.append(self.clock.at)
        self.clock.sleep(self._seconds)
        raise StoreUnavailableError("throttled")

    claim = commit = release = renew = note_deferral = _throttle


class Tries:
    """The moments of the tries of a write that is throttled each time, in seconds from the first one.

    The library itself decides them, with its random pauses, as it does for a delivery without a near hard time limit.
    Of those that depend on nothing but chance `DRAWN` are drawn once, and each write takes one of these: the library
    takes longer to decide than a day has.

    Args:
        request_seconds: from sending a request to its answer.
        lease_seconds: how long a claim lives.
        chance: takes one.
    """

    def __init__(self, request_seconds: float, lease_seconds: float, chance: Random) -> None:
        self._seconds, self._chance = request_seconds, chance
        self._request = ClaimRequest(key="key", owner="owner", lease_seconds=lease_seconds, retention_seconds=3600)

    def claim(self) -> list[float]:
        """Return those of a claim."""
        return self._chance.choice(self._claims)

    def note(self) -> list[float]:
        """Return those of the note of a deferral."""
        return self._chance.choice(self._notes)

    def withdrawal(self) -> list[float]:
        """Return those of a release of a claim whose answer was not seen."""
        return self._withdrawal

    def commit(self, claim_left: float) -> list[float]:
        """Return those of a commit whose claim lives so many more seconds."""
        held = Claim(request=self._request, fence=1, attempt=1, in_progress_expiration=int(claim_left * 1000))
        outcome = Outcome(status=Status.COMPLETED, codec="json", data="null")
        return self._moments(lambda store: store.commit(_Run(held), outcome))

    @cached_property
    def _claims(self) -> list[list[float]]:
        return [self._moments(lambda store: store.claim(self._request)) for _ in range(DRAWN)]

    @cached_property
    def _notes(self) -> list[list[float]]:
        return [self._moments(lambda store: store.note_deferral("key", "owner", "copy", 0, [])) for _ in range(DRAWN)]

    @cached_property
    def _withdrawal(self) -> list[float]:
        return self._moments(lambda store: store.withdraw(Claim.unseen(self._request), "Unseen"))

    def _moments(self, call: Callable[[RetryingStore], object]) -> list[float]:
        throttling = _Throttling(self._seconds)
        store: Any = throttling
        call(RetryingStore(store=store, observe=lambda _: None))
        return throttling.sent


@dataclass
class _Run:
    """A body that has returned."""

    claim: Claim
