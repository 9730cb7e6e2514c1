"""The demo's workload: payments and the fault of each, drawn from a seed, the same for both phases."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

__all__ = [
    "FEWEST_PAYMENTS",
    "KILL_AFTER_SECONDS",
    "MOST_PAYMENTS",
    "TIME_LIMIT_SECONDS",
    "VISIBILITY_TIMEOUT_SECONDS",
    "Fault",
    "Payment",
    "draw",
]

#: Seconds after which the broker delivers an unacknowledged message again.
VISIBILITY_TIMEOUT_SECONDS = 5
#: The hard time limit of the task: longer than any run.
TIME_LIMIT_SECONDS = 9
#: Seconds from the start of a run to the kill.
KILL_AFTER_SECONDS = 0.8
#: Enough for one payment of each fault, and some without.
FEWEST_PAYMENTS = 8
#: As many as two workers finish in a phase's time.
MOST_PAYMENTS = 60


class Fault(StrEnum):
    """What goes wrong with a payment."""

    #: Nothing: one message, and a run shorter than the visibility timeout.
    NONE = "none"
    #: The producer publishes it twice.
    TWICE = "published twice"
    #: It runs longer than the visibility timeout, so the broker delivers it again meanwhile.
    SLOW = "outlives the visibility timeout"
    #: The pool child that charges it is killed.
    CHILD_KILLED = "pool child killed"
    #: The whole worker that charges it is killed.
    WORKER_KILLED = "worker killed"


#: The shortest and the longest run of each fault, in seconds.
_SECONDS = {
    Fault.NONE: (0.5, 1.4),
    Fault.TWICE: (0.8, 1.8),
    Fault.SLOW: (6.2, 7.0),
    Fault.CHILD_KILLED: (2.6, 3.2),
    Fault.WORKER_KILLED: (2.6, 3.2),
}
#: Seconds between two messages of a payment: at once, during the run, after it.
_GAPS = (0.0, 0.6, 3.0)
#: Payments published a second.
_RATE = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Payment:
    """A payment that is to be charged exactly once."""

    name: str
    cents: int
    fault: Fault
    #: How long its run takes.
    seconds: float
    #: When each of its messages is published, in seconds since the phase began.
    publish_at: tuple[float, ...]


def draw(count: int, seed: int) -> tuple[Payment, ...]:
    """Draw the workload.

    Args:
        count: the number of payments, at least `FEWEST_PAYMENTS`.
        seed: the same seed and count give the same workload.
    """
    random = Random(seed)  # noqa: S311 - a reproducible draw is the point
    faults = _faults(count)
    random.shuffle(faults)
    return tuple(_payment(index, fault, random) for index, fault in enumerate(faults))


def _faults(count: int) -> list[Fault]:
    bad = [
        *[Fault.WORKER_KILLED] * max(1, count // 40),
        *[Fault.CHILD_KILLED] * max(1, count // 10),
        *[Fault.SLOW] * max(1, count // 10),
        *[Fault.TWICE] * max(1, count // 4),
    ]
    return bad + [Fault.NONE] * (count - len(bad))


def _payment(index: int, fault: Fault, random: Random) -> Payment:
    first = index / _RATE
    # A duplicate of a payment whose worker is killed meets the claim of a dead process.
    twice = fault is Fault.TWICE or (fault is Fault.CHILD_KILLED and index % 2 == 0)
    return Payment(
        name=f"pay-{index + 1:02d}",
        cents=random.randrange(500, 20_000),
        fault=fault,
        seconds=round(random.uniform(*_SECONDS[fault]), 2),
        publish_at=(first, first + random.choice(_GAPS)) if twice else (first,),
    )
