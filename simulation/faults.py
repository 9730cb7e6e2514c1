"""What goes wrong in a history, drawn from its seed, and how often each kind has happened."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

__all__ = [
    "BUCKET_FAULTS",
    "COMMIT_FAULTS",
    "DATABASE_FAULTS",
    "NETWORK_FAULTS",
    "OPERATOR_KINDS",
    "TRANSACTION_FAULTS",
    "Faults",
    "RequestFault",
    "conflict",
]

#: The ways of a request, and its answer, to go wrong.
NETWORK_FAULTS: Final = (
    "request-lost",
    "request-late",
    "answer-lost",
    "answer-late",
    "doubled",
    "throttled",
    "failed",
    "foreign-answer",
)
#: The ways of a transaction to go wrong beside those: it meets another one, it keeps its items for a while, it is not
#: answered, whether it was carried out or not.
TRANSACTION_FAULTS: Final = ("transaction-conflict", "transaction-slow", "transaction-unanswered")
#: The most seconds for which a slow one keeps its items.
SLOW_SECONDS: Final = 1.5
#: The ways of a ``COMMIT`` in the user's database to go wrong: it is refused, does not arrive, not even the end of its
#: connection does, it is late, or its answer does not arrive.
COMMIT_FAULTS: Final = (
    *("deadlock-at-commit", "receipt-unfit"),
    *("commit-lost", "commit-vanished", "commit-late", "commit-unanswered"),
)
#: All ways of what that database is asked for.
DATABASE_FAULTS: Final = (
    *COMMIT_FAULTS,
    *("deadlock-at-begin", "deadlock-in-body", "database-away", "database-restarted"),
)
#: The ways of a call of the bucket to go wrong.
BUCKET_FAULTS: Final = ("bucket-failed", "bucket-slow", "upload-lost")
#: What an operator's command has done to a record.
OPERATOR_KINDS: Final = ("released", "forgotten", "purged")

#: Takes the service and the operation; returns what the answer makes the client do: return or raise.
Answer = Callable[[Any, str], Callable[[], Any]]
#: Seconds of a request's way, and of its answer's.
_WAY_SECONDS: Final = (0.001, 0.03)
#: How late a request or an answer may be, in leases.
LATEST_IN_LEASES: Final = 3
#: The part of all requests that a throttled service refuses.
THROTTLED_PART: Final = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFault:
    """The course of one request."""

    #: Seconds on the way there and back.
    request_seconds: float
    answer_seconds: float
    #: Whether it never arrives.
    lost: bool = False
    #: Makes the answer of a service that does not carry it out; None where it does.
    refusal: Answer | None = None
    doubled: bool = False
    #: For how many seconds a transaction has its items to itself before it takes effect.
    takes_seconds: float = 0.0
    answers: bool = True
    #: Makes another answer than the service's, which has carried it out.
    replaced: Answer | None = None
    #: For how many seconds the client waits; None for its usual time-out.
    waits: float | None = None


class Faults:
    """Draws faults, and counts those that happened.

    Args:
        draw: the history's random numbers.
        rates: by kind, how likely it is; kinds that are missing never happen.
        lease: seconds; answers may be late by several of them.
    """

    def __init__(self, draw: random.Random, rates: Mapping[str, float], lease: float) -> None:
        self._draw = draw
        self._rates = rates
        self._lease = lease
        self.counts: Counter[str] = Counter()
        #: Whether faults still happen: they stop before a history's end, so that every delivery can end.
        self.active = True
        #: Called with the kind of each fault that shows in nothing else.
        self.on_fault: Callable[[str], None] = lambda _: None

    @property
    def kinds(self) -> frozenset[str]:
        """What may happen."""
        return frozenset(self._rates)

    def happens(self, kind: str, *, shows: bool = False) -> bool:
        """Return whether a fault of this kind happens now; count it if so.

        Args:
            kind: of the fault.
            shows: whether what it does is noted by itself.
        """
        rate = self._rates.get(kind, 0.0)
        if not self.active or not rate or self._draw.random() >= rate:
            return False
        self.counts[kind] += 1
        if not shows:
            self.on_fault(kind)
        return True

    def of_request(self, *, throttled: bool = False) -> RequestFault:  # noqa: PLR0911 - one for each kind
        """Return the course of the next request; of a service that is throttled, mostly a refusal."""
        draw = self._draw
        usual = RequestFault(request_seconds=draw.uniform(*_WAY_SECONDS), answer_seconds=draw.uniform(*_WAY_SECONDS))
        kind = next((kind for kind in NETWORK_FAULTS if self.happens(kind)), None)
        kind = "throttled" if throttled and draw.random() < THROTTLED_PART else kind
        late = draw.uniform(0, LATEST_IN_LEASES * self._lease)
        match kind:
            case None:
                return usual
            case "request-lost":
                return replace(usual, lost=True)
            case "request-late":
                return replace(usual, request_seconds=late)
            case "answer-lost":
                return replace(usual, answers=False)
            case "answer-late":
                patience = draw.choice([None, (LATEST_IN_LEASES + 1) * self._lease])
                return replace(usual, answer_seconds=late, waits=patience)
            case "doubled":
                return replace(usual, doubled=True)
            case "throttled":
                return replace(usual, refusal=_throttled)
            case "failed":
                # An internal error says nothing about what was done.
                if draw.random() < 0.5:
                    return replace(usual, refusal=_failed)
                return replace(usual, replaced=_failed)
            case _:
                return replace(usual, replaced=draw.choice([_page, _of_another]))

    def of_transaction(self, course: RequestFault) -> RequestFault:
        """Return the course of a transaction whose request has this one."""
        if self.happens("transaction-conflict"):
            return replace(course, refusal=conflict)
        if self.happens("transaction-slow"):
            course = replace(course, takes_seconds=self._draw.uniform(0, SLOW_SECONDS))
        if self.happens("transaction-unanswered"):
            lost = self._draw.random() < 0.5
            course = replace(course, lost=lost, answers=False)
        return course


def conflict(service: Any, _: str) -> Callable[[], Any]:
    """Refuse a transaction because another one is at its items."""
    return service.conflict()


def _throttled(service: Any, operation: str) -> Callable[[], Any]:
    if operation == "transact_write_items":
        return service.cancel([{"Code": "ThrottlingError"}])
    return service.refuse(operation, "ProvisionedThroughputExceededException", 400)


def _failed(service: Any, operation: str) -> Callable[[], Any]:
    return service.refuse(operation, "InternalServerError", 500)


def _page(service: Any, _: str) -> Callable[[], Any]:
    return service.page()


def _of_another(service: Any, _: str) -> Callable[[], Any]:
    return service.of_another()
